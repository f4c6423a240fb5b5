SELECT
  `t3`.`query`,
  `t2`.`request_id`,
  `t3`.`user_id`,
  `t2`.`item_id`,
  `t2`.`position`,
  CASE `t2`.`stage`
    WHEN 'exposed'
    THEN IF(`t2`.`clicked` OR `t2`.`liked`, 'P0', 'X3')
    WHEN 'ranked'
    THEN 'U2'
    WHEN 'filtered'
    THEN 'F1'
    ELSE NULL
  END AS `source`,
  NULLIF(`t3`.`typed`, `t3`.`query`) AS `typed`
FROM `candidates` AS `t2`
INNER JOIN `searches` AS `t3`
  ON `t2`.`request_id` = `t3`.`request_id`;
