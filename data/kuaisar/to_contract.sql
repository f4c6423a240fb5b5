-- KuaiSAR's tables (views of all-text CSV: src_inter, rec_inter, item_features) -> the tables of the log contract.

-- stage: items
CREATE TEMP TABLE raw_items AS
  SELECT row_number() OVER () AS row, item_id AS written, whole(item_id) AS item_id,
         trim(regexp_replace(caption, '[^0-9]+', ' ', 'g')) AS tokens,
         -- Of a category that is not there the set says id 0.
         concat_ws('|', CASE WHEN first_level_category_id <> '0' THEN first_level_category_name_en END,
                        CASE WHEN second_level_category_id <> '0' THEN second_level_category_name_en END,
                        CASE WHEN third_level_category_id <> '0' THEN third_level_category_name_en END,
                        CASE WHEN fourth_level_category_id <> '0' THEN fourth_level_category_name_en END) AS categories
  FROM item_features;
CREATE TEMP TABLE items AS
  SELECT item_id, NULL::VARCHAR AS ocr_cover, nullif(arg_min(tokens, row), '') AS photo_caption,
         nullif(arg_min(categories, row), '') AS keyword, NULL::VARCHAR AS click_query, NULL::BIGINT AS play_cnt,
         NULL::BIGINT AS like_cnt, NULL::BIGINT AS long_view_cnt, NULL::BIGINT AS download_cnt
  FROM raw_items WHERE item_id >= 0 GROUP BY item_id;
INSERT INTO rejects SELECT 'item_features: item_id is no number from 0', count(*), arg_min(written, row)
  FROM raw_items WHERE item_id IS NULL OR item_id < 0;
INSERT INTO rejects SELECT 'item_features: item listed again (the first is taken)', count(*) - count(DISTINCT item_id), ''
  FROM raw_items WHERE item_id >= 0;
DROP TABLE raw_items;

-- stage: search
-- The clock of Beijing, ms; and whether one is there that cannot be read: the timestamp beside it may be rounded.
CREATE TEMP MACRO clock(written) AS
  epoch_ms(try_strptime(trim(written), ['%Y-%m-%d %H:%M:%S', '%Y-%m-%d %H:%M:%S.%f', '%Y/%m/%d %H:%M:%S', '%Y/%m/%d %H:%M'])) - 28800000;
CREATE TEMP MACRO unread(written) AS coalesce(trim(written), '') <> '' AND clock(written) IS NULL;
-- Some copies have the timestamp rounded (1.684742e+12): where the clock says something else, it counts. A clock
-- without seconds says any moment of its minute.
CREATE TEMP MACRO rounded(stamp, told, written) AS
  stamp - told <= -1000 OR stamp - told >= CASE WHEN regexp_matches(written, ':[0-9]+:') THEN 1000 ELSE 60000 END;
CREATE TEMP TABLE shown AS
  SELECT row_number() OVER () AS row, whole(user_id) AS user_id,
         whole(search_session_id) AS session, whole(item_id) AS item_id, item_type,
         trim(regexp_replace(keyword, '[^0-9]+', ' ', 'g')) AS query, acted(click_cnt) AS clicked,
         try_cast(CASE WHEN rounded THEN told ELSE coalesce(stamp, told) END AS BIGINT) AS ts,
         coalesce(rounded, false) AS by_clock, unread
  FROM (SELECT *, try_cast(search_session_timestamp AS DOUBLE) AS stamp,
               clock(search_session_time) AS told, unread(search_session_time) AS unread,
               rounded(stamp, told, search_session_time) AS rounded FROM src_inter);
INSERT INTO rejects
  SELECT CASE WHEN user_id IS NULL OR session IS NULL OR item_id IS NULL
              THEN 'src_inter: user_id, search_session_id or item_id is no number'
              WHEN unread THEN 'src_inter: search_session_time that cannot be read'
              ELSE 'src_inter: no time between 2000 and 2100' END, count(*), 'row ' || min(row)
  FROM shown WHERE user_id IS NULL OR session IS NULL OR item_id IS NULL OR unread OR ts IS NULL OR NOT ts BETWEEN $earliest AND $latest
  GROUP BY 1;
DELETE FROM shown
  WHERE user_id IS NULL OR session IS NULL OR item_id IS NULL OR unread OR ts IS NULL OR NOT ts BETWEEN $earliest AND $latest;

INSERT INTO rejects SELECT 'src_inter: search_session_timestamp is not the search_session_time, which is taken (row kept)',
    count(*), 'row ' || min(row) FROM shown WHERE by_clock;

-- A search session is one query. Its first row tells which, and when; every row tells one result.
CREATE TEMP TABLE searches AS
  SELECT user_id || '-' || session AS request_id, user_id, coalesce(arg_min(query, row), '') AS query, min(ts) AS ts,
         count(DISTINCT query) AS queries
  FROM shown GROUP BY user_id, session;
INSERT INTO rejects SELECT 'src_inter: further queries of one session (its first row tells the query)',
    coalesce(sum(queries - 1), 0), arg_min(request_id, request_id) FROM searches WHERE queries > 1;
INSERT INTO rejects SELECT 'src_inter: search without a keyword (row kept, and not mined)', count(*), min(request_id)
  FROM searches WHERE query = '';
INSERT INTO rejects SELECT 'src_inter: result is of the kind ' || coalesce(item_type, '(none)'), count(*), 'row ' || min(row)
  FROM shown WHERE item_type IS NULL OR item_type NOT IN ($kinds) GROUP BY item_type;
INSERT INTO rejects SELECT 'src_inter: result that item_features lacks', count(*), 'row ' || min(row)
  FROM shown ANTI JOIN items USING (item_id) WHERE item_type IN ($kinds);

CREATE TEMP TABLE results AS
  SELECT user_id || '-' || session AS request_id, item_id, bool_or(clicked) AS clicked, min(row) AS row, count(*) AS times
  FROM shown SEMI JOIN items USING (item_id) WHERE item_type IN ($kinds) GROUP BY user_id, session, item_id;
INSERT INTO rejects SELECT 'src_inter: result listed again in one session (clicks are joined)', coalesce(sum(times - 1), 0),
    min(request_id || ' ' || item_id) FROM results WHERE times > 1;
CREATE TEMP TABLE candidates AS
  SELECT request_id, item_id, 'exposed' AS stage,
         row_number() OVER (PARTITION BY request_id ORDER BY row)::INTEGER AS position,  -- order of the file, no rank
         clicked, false AS liked, 0::BIGINT AS watch_ms
  FROM results;
DROP TABLE results;
DROP TABLE shown;

-- stage: feed
CREATE TEMP TABLE watched AS
  SELECT row_number() OVER () AS row, whole(user_id) AS user_id, whole(item_id) AS item_id,
         acted(click) AS clicked, acted("like") AS liked,
         round(try_cast(playing_time AS DOUBLE)) AS watch_ms, round(try_cast(duration_ms AS DOUBLE)) AS duration_ms,
         try_cast(CASE WHEN rounded THEN told ELSE coalesce(stamp, told) END AS BIGINT) AS ts,
         coalesce(rounded, false) AS by_clock, unread
  FROM (SELECT *, try_cast("timestamp" AS DOUBLE) AS stamp,
               clock("time") AS told, unread("time") AS unread,
               rounded(stamp, told, "time") AS rounded FROM rec_inter);
CREATE TEMP TABLE judged AS
  SELECT *, CASE WHEN user_id IS NULL OR item_id IS NULL THEN 'rec_inter: user_id or item_id is no number'
                 WHEN unread THEN 'rec_inter: time that cannot be read'
                 WHEN ts IS NULL OR NOT ts BETWEEN $earliest AND $latest THEN 'rec_inter: no time between 2000 and 2100'
                 WHEN watch_ms IS NULL OR watch_ms NOT BETWEEN 0 AND 1e12 OR duration_ms IS NULL OR duration_ms NOT BETWEEN 0 AND 1e12
                 THEN 'rec_inter: playing_time or duration_ms is no number from 0'
                 WHEN item_id NOT IN (SELECT item_id FROM items) THEN 'rec_inter: item that item_features lacks' END AS bad
  FROM watched;
DROP TABLE watched;
INSERT INTO rejects SELECT bad, count(*), 'row ' || min(row) FROM judged WHERE bad IS NOT NULL GROUP BY bad;
INSERT INTO rejects SELECT 'rec_inter: timestamp is not the time, which is taken (row kept)', count(*), 'row ' || min(row)
  FROM judged WHERE bad IS NULL AND by_clock;
INSERT INTO rejects SELECT 'rec_inter: row that is there again', count(*) - count(DISTINCT (user_id, item_id, ts)), ''
  FROM judged WHERE bad IS NULL;
CREATE TEMP TABLE feed AS
  SELECT user_id, item_id, ts, bool_or(clicked) AS clicked, bool_or(liked) AS liked, max(watch_ms)::BIGINT AS watch_ms,
         max(duration_ms)::BIGINT AS duration_ms
  FROM judged WHERE bad IS NULL GROUP BY user_id, item_id, ts;
DROP TABLE judged;
