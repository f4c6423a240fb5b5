CREATE TEMP TABLE `p2_places` AS
WITH `t2` AS (
  SELECT DISTINCT
    `t0`.`query`,
    `t0`.`user_id`,
    `t0`.`ts`
  FROM `searches` AS `t0`
)
SELECT
  `t14`.`user_id`,
  `t14`.`item_id`,
  `t14`.`ts`,
  `t14`.`query`,
  LEAST(`t14`.`block`, `t14`.`last`) AS `block`,
  `t14`.`last`
FROM (
  SELECT
    `t13`.`user_id`,
    `t13`.`item_id`,
    `t13`.`ts`,
    `t13`.`after`,
    `t13`.`query`,
    `t13`.`seen`,
    `t13`.`block`,
    MAX(IF(`t13`.`seen` = 1, `t13`.`block`, NULL)) OVER (
      PARTITION BY `t13`.`user_id`
      ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    ) AS `last`
  FROM (
    SELECT
      `t12`.`user_id`,
      `t12`.`item_id`,
      `t12`.`ts`,
      `t12`.`after`,
      `t12`.`query`,
      `t12`.`seen`,
      CAST(FLOOR(
        ieee_divide(
          (
            SUM(`t12`.`seen`) OVER (
              PARTITION BY `t12`.`user_id`
              ORDER BY `t12`.`ts` ASC, `t12`.`seen` ASC, `t12`.`item_id` ASC, `t12`.`query` ASC
              ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
            ) - `t12`.`seen`
          ) - `t12`.`after`,
          100
        )
      ) AS INT64) AS `block`
    FROM (
      SELECT
        *
      FROM (
        SELECT
          `t10`.`user_id`,
          `t10`.`item_id`,
          `t10`.`ts`,
          `t10`.`after`,
          CAST(NULL AS STRING) AS `query`,
          1 AS `seen`
        FROM (
          SELECT
            `t9`.`user_id`,
            `t9`.`item_id`,
            `t9`.`ts`,
            ROW_NUMBER() OVER (PARTITION BY `t9`.`user_id`, `t9`.`ts` ORDER BY `t9`.`item_id` ASC) - 1 AS `after`
          FROM (
            SELECT DISTINCT
              *
            FROM (
              SELECT
                `t7`.`user_id`,
                `t7`.`item_id`,
                `t7`.`ts`
              FROM (
                SELECT
                  *
                FROM `feed` AS `t1`
                WHERE
                  `t1`.`clicked` OR `t1`.`liked` OR (
                    `t1`.`watch_ms` >= 10000
                  )
              ) AS `t7`
              WHERE
                EXISTS(
                  SELECT
                    1
                  FROM `t2` AS `t4`
                  WHERE
                    `t7`.`user_id` = `t4`.`user_id`
                )
            ) AS `t8`
          ) AS `t9`
        ) AS `t10`
        WHERE
          `t10`.`after` < 100
      ) AS `t11`
      UNION ALL
      SELECT
        *
      FROM (
        SELECT
          `t3`.`user_id`,
          CAST(NULL AS INT64) AS `item_id`,
          `t3`.`ts`,
          0 AS `after`,
          `t3`.`query`,
          0 AS `seen`
        FROM `t2` AS `t3`
      ) AS `t6`
    ) AS `t12`
  ) AS `t13`
) AS `t14`
WHERE
  `t14`.`last` IS NOT NULL;

CREATE TEMP TABLE `p2_reach_1` AS
SELECT
  *
FROM (
  SELECT
    `t5`.`user_id`,
    `t5`.`side`,
    `t5`.`block`,
    `t5`.`item_id`,
    `t5`.`away`,
    ROW_NUMBER() OVER (
      PARTITION BY `t5`.`user_id`, `t5`.`side`, `t5`.`block`
      ORDER BY `t5`.`away` ASC, `t5`.`item_id` ASC
    ) - 1 AS `place`
  FROM (
    SELECT
      `t4`.`user_id`,
      `t4`.`side`,
      `t4`.`block`,
      `t4`.`item_id`,
      MIN(`t4`.`away`) AS `away`
    FROM (
      SELECT
        `t3`.`user_id`,
        `t3`.`item_id`,
        `t3`.`block` - `t3`.`side` AS `block`,
        `t3`.`last`,
        `t3`.`seen_ts`,
        `t3`.`side`,
        `t3`.`side` * `t3`.`seen_ts` AS `away`
      FROM (
        SELECT
          *
        FROM (
          SELECT
            `t0`.`user_id`,
            `t0`.`item_id`,
            `t0`.`block`,
            `t0`.`last`,
            `t0`.`ts` AS `seen_ts`,
            -1 AS `side`
          FROM `p2_places` AS `t0`
          WHERE
            `t0`.`query` IS NULL
        ) AS `t1`
        UNION ALL
        SELECT
          *
        FROM (
          SELECT
            `t0`.`user_id`,
            `t0`.`item_id`,
            `t0`.`block`,
            `t0`.`last`,
            `t0`.`ts` AS `seen_ts`,
            1 AS `side`
          FROM `p2_places` AS `t0`
          WHERE
            `t0`.`query` IS NULL
        ) AS `t2`
      ) AS `t3`
      WHERE
        (
          `t3`.`block` - `t3`.`side`
        ) >= 0
        AND (
          `t3`.`block` - `t3`.`side`
        ) <= `t3`.`last`
    ) AS `t4`
    GROUP BY
      1,
      2,
      3,
      4
  ) AS `t5`
) AS `t6`
WHERE
  `t6`.`place` < 100;

CREATE TEMP TABLE `p2_few_1` AS
SELECT
  `t2`.`user_id`,
  `t2`.`side`,
  `t2`.`block`
FROM (
  SELECT DISTINCT
    `t0`.`user_id`,
    `t0`.`side`,
    `t0`.`block`
  FROM `p2_reach_1` AS `t0`
) AS `t2`
WHERE
  NOT EXISTS(
    SELECT
      1
    FROM (
      SELECT
        *
      FROM `p2_reach_1` AS `t0`
      WHERE
        `t0`.`place` = 99
    ) AS `t5`
    WHERE
      `t2`.`user_id` = `t5`.`user_id`
      AND `t2`.`side` = `t5`.`side`
      AND `t2`.`block` = `t5`.`block`
  )
  AND EXISTS(
    SELECT
      1
    FROM (
      SELECT
        `t0`.`user_id`,
        `t0`.`side`,
        `t0`.`block` - (
          `t0`.`side` * 1
        ) AS `block`,
        `t0`.`item_id`,
        `t0`.`away`,
        `t0`.`place`
      FROM `p2_reach_1` AS `t0`
    ) AS `t6`
    WHERE
      `t2`.`user_id` = `t6`.`user_id`
      AND `t2`.`side` = `t6`.`side`
      AND `t2`.`block` = `t6`.`block`
  );

SELECT
  `t13`.*
  EXCEPT (`place`)
FROM (
  SELECT
    *
  FROM (
    SELECT
      `t11`.`query`,
      `t11`.`user_id`,
      `t11`.`item_id`,
      `t11`.`distance_ms`,
      ROW_NUMBER() OVER (
        PARTITION BY `t11`.`query`, `t11`.`user_id`
        ORDER BY `t11`.`distance_ms` ASC, `t11`.`item_id` ASC
      ) - 1 AS `place`
    FROM (
      SELECT
        `t10`.`query`,
        `t10`.`user_id`,
        `t10`.`item_id`,
        MIN(`t10`.`distance_ms`) AS `distance_ms`
      FROM (
        SELECT
          `t9`.`query`,
          `t9`.`user_id`,
          `t9`.`ts`,
          `t9`.`block`,
          `t9`.`item_id`,
          `t9`.`seen_ts`,
          ABS(`t9`.`seen_ts` - `t9`.`ts`) AS `distance_ms`
        FROM (
          SELECT
            `t5`.`query`,
            `t5`.`user_id`,
            `t5`.`ts`,
            `t5`.`block`,
            `t8`.`item_id`,
            `t8`.`seen_ts`
          FROM (
            SELECT
              `t0`.`query`,
              `t0`.`user_id`,
              `t0`.`ts`,
              `t0`.`block`
            FROM `p2_places` AS `t0`
            WHERE
              `t0`.`query` IS NOT NULL
          ) AS `t5`
          INNER JOIN (
            SELECT
              *
            FROM (
              SELECT
                `t3`.*
                EXCEPT (`last`)
              FROM (
                SELECT
                  `t0`.`user_id`,
                  `t0`.`item_id`,
                  `t0`.`block`,
                  `t0`.`last`,
                  `t0`.`ts` AS `seen_ts`
                FROM `p2_places` AS `t0`
                WHERE
                  `t0`.`query` IS NULL
              ) AS `t3`
            ) AS `t6`
            UNION ALL
            SELECT
              *
            FROM (
              SELECT
                `t1`.`user_id`,
                `t1`.`item_id`,
                `t1`.`block`,
                `t1`.`side` * `t1`.`away` AS `seen_ts`
              FROM `p2_reach_1` AS `t1`
            ) AS `t4`
          ) AS `t8`
            ON `t5`.`user_id` = `t8`.`user_id` AND `t5`.`block` = `t8`.`block`
        ) AS `t9`
        WHERE
          ABS(`t9`.`seen_ts` - `t9`.`ts`) <= 86400000
      ) AS `t10`
      GROUP BY
        1,
        2,
        3
    ) AS `t11`
  ) AS `t12`
  WHERE
    `t12`.`place` < 100
) AS `t13`;
