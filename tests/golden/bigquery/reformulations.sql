WITH `t2` AS (
  SELECT
    `t1`.`request_id`,
    `t1`.`user_id`,
    `t1`.`query`,
    `t1`.`ts`,
    ROW_NUMBER() OVER (PARTITION BY `t1`.`user_id` ORDER BY `t1`.`ts` ASC, `t1`.`request_id` ASC) - 1 AS `place`
  FROM (
    SELECT
      `t0`.`request_id`,
      `t0`.`user_id`,
      `t0`.`query`,
      `t0`.`ts`
    FROM `searches` AS `t0`
  ) AS `t1`
), `t8` AS (
  SELECT
    *
  FROM (
    SELECT
      `t3`.`request_id` AS `next_request_id`,
      `t3`.`user_id`,
      `t3`.`query` AS `next_query`,
      `t3`.`ts` AS `next_ts`,
      `t3`.`place` AS `next_place`,
      CAST(FLOOR(ieee_divide(`t3`.`ts`, 90000)) AS INT64) AS `bucket`,
      CAST(FLOOR(ieee_divide(`t3`.`place`, 100)) AS INT64) AS `block`
    FROM `t2` AS `t3`
  ) AS `t5`
  UNION ALL
  SELECT
    *
  FROM (
    SELECT
      `t3`.`request_id` AS `next_request_id`,
      `t3`.`user_id`,
      `t3`.`query` AS `next_query`,
      `t3`.`ts` AS `next_ts`,
      `t3`.`place` AS `next_place`,
      CAST(FLOOR(ieee_divide(`t3`.`ts`, 90000)) AS INT64) - 1 AS `bucket`,
      CAST(FLOOR(ieee_divide(`t3`.`place`, 100)) AS INT64) AS `block`
    FROM `t2` AS `t3`
  ) AS `t6`
)
SELECT
  `t13`.`request_id`,
  `t13`.`user_id`,
  `t13`.`query`,
  `t13`.`next_request_id`,
  `t13`.`next_query`,
  `t13`.`next_ts` - `t13`.`ts` AS `gap_ms`
FROM (
  SELECT
    `t7`.`request_id`,
    `t7`.`user_id`,
    `t7`.`query`,
    `t7`.`ts`,
    `t7`.`place`,
    `t7`.`bucket`,
    `t7`.`block`,
    `t12`.`next_request_id`,
    `t12`.`next_query`,
    `t12`.`next_ts`,
    `t12`.`next_place`
  FROM (
    SELECT
      `t3`.`request_id`,
      `t3`.`user_id`,
      `t3`.`query`,
      `t3`.`ts`,
      `t3`.`place`,
      CAST(FLOOR(ieee_divide(`t3`.`ts`, 90000)) AS INT64) AS `bucket`,
      CAST(FLOOR(ieee_divide(`t3`.`place`, 100)) AS INT64) AS `block`
    FROM `t2` AS `t3`
  ) AS `t7`
  INNER JOIN (
    SELECT
      *
    FROM `t8` AS `t9`
    UNION ALL
    SELECT
      *
    FROM (
      SELECT
        `t9`.`next_request_id`,
        `t9`.`user_id`,
        `t9`.`next_query`,
        `t9`.`next_ts`,
        `t9`.`next_place`,
        `t9`.`bucket`,
        `t9`.`block` - 1 AS `block`
      FROM `t8` AS `t9`
      WHERE
        `t9`.`block` > 0
    ) AS `t10`
  ) AS `t12`
    ON `t7`.`user_id` = `t12`.`user_id`
    AND `t7`.`bucket` = `t12`.`bucket`
    AND `t7`.`block` = `t12`.`block`
) AS `t13`
WHERE
  (
    `t13`.`next_ts` - `t13`.`ts`
  ) > 0
  AND (
    `t13`.`next_ts` - `t13`.`ts`
  ) <= 90000
  AND (
    `t13`.`next_place` - `t13`.`place`
  ) <= 100
  AND `t13`.`query` <> `t13`.`next_query`;
