-- Qilin's tables (views: search_train, search_test, recommendation_train, recommendation_test, notes) -> the log contract.

-- stage: notes
CREATE TEMP TABLE note AS
  SELECT item_id, note_title AS title, note_content AS content,
         try_cast(video_duration AS DOUBLE) AS seconds, count(*) OVER (PARTITION BY item_id) AS times
  FROM (SELECT row_number() OVER () AS row, whole(note_idx) AS item_id, * FROM notes) WHERE item_id >= 0
  QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY row) = 1;
CREATE TEMP TABLE items AS
  SELECT item_id, nullif(title, '') AS ocr_cover, nullif(content, '') AS photo_caption, NULL::VARCHAR AS keyword,
         NULL::VARCHAR AS click_query, NULL::BIGINT AS play_cnt, NULL::BIGINT AS like_cnt,
         NULL::BIGINT AS long_view_cnt, NULL::BIGINT AS download_cnt
  FROM note;
INSERT INTO rejects SELECT 'notes: note_idx is no number from 0', count(*), 'title ' || min(note_title)
  FROM notes WHERE coalesce(whole(note_idx), -1) < 0;
INSERT INTO rejects SELECT 'notes: note listed again (the first is taken)', coalesce(sum(times - 1), 0), 'note_idx ' || min(item_id)
  FROM note WHERE times > 1;

-- stage: search
CREATE TEMP TABLE asked AS
  SELECT row_number() OVER () AS row, part || '-' || search_idx AS request_id, user_idx, whole(user_idx) AS user_id, query,
         search_result_details_with_idx AS results
  FROM (SELECT 'train' AS part, * FROM search_train UNION ALL BY NAME SELECT 'test' AS part, * FROM search_test);
CREATE TEMP TABLE shown AS
  SELECT request_id, whole(d.note_idx) AS item_id, try_cast(d.position AS DOUBLE) AS position, acted(d.click) AS clicked,
         $search_liked AS liked, try_cast(d.page_time AS DOUBLE) AS seconds, place, try_cast(d.$search_stamp AS DOUBLE) AS stamp
  FROM (SELECT request_id, unnest(results) AS d, generate_subscripts(results, 1) AS place FROM asked);
-- Some copies have milliseconds where others have seconds.
CREATE TEMP TABLE times AS
  SELECT request_id, try_cast(min(CASE WHEN stamp > 1e11 THEN stamp ELSE stamp * 1000 END) AS BIGINT) AS ts FROM shown GROUP BY request_id;
CREATE TEMP TABLE searches AS
  SELECT request_id, user_id, user_idx, coalesce(query, '') AS query, ts, count(*) OVER (PARTITION BY request_id) AS rows
  FROM asked JOIN times USING (request_id) WHERE ts BETWEEN $earliest AND $latest
  QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY row) = 1;
INSERT INTO rejects SELECT 'search: no result, or no time between 2000 and 2100', count(*), 'search ' || min(request_id)
  FROM asked ANTI JOIN searches USING (request_id);
INSERT INTO rejects SELECT 'search: search_idx is there again (the first tells user and query)', coalesce(sum(rows - 1), 0), 'search ' || min(request_id)
  FROM searches WHERE rows > 1;
INSERT INTO rejects SELECT 'search: without a query (row kept, and not mined)', count(*), 'search ' || min(request_id)
  FROM searches WHERE trim(query) = '';
INSERT INTO rejects SELECT 'search: user_idx is no number (row kept, and of nobody)', count(*), 'search ' || min(request_id)
  FROM searches WHERE user_id IS NULL AND user_idx IS NOT NULL;
INSERT INTO rejects SELECT 'search: result that notes lacks', count(*), 'note_idx ' || min(item_id)
  FROM shown SEMI JOIN searches USING (request_id) ANTI JOIN items USING (item_id);
CREATE TEMP TABLE results AS
  SELECT request_id, item_id, bool_or(clicked) AS clicked, bool_or(liked) AS liked, min(position) AS position, min(place) AS place,
         -- -1 and NaN say that nobody knows.
         max(CASE WHEN seconds BETWEEN 0 AND 1e9 THEN seconds ELSE 0 END) AS seconds,
         count(*) AS times
  FROM shown SEMI JOIN searches USING (request_id) SEMI JOIN items USING (item_id) GROUP BY request_id, item_id;
INSERT INTO rejects SELECT 'search: result listed again in one search (clicks are joined)', coalesce(sum(times - 1), 0),
    min(request_id || ' ' || item_id) FROM results WHERE times > 1;
CREATE TEMP TABLE candidates AS
  SELECT request_id, item_id, 'exposed' AS stage,
         row_number() OVER (PARTITION BY request_id ORDER BY position, place, item_id)::INTEGER AS position, clicked, liked,
         round(1000 * seconds)::BIGINT AS watch_ms
  FROM results;
DROP TABLE results;
DROP TABLE shown;

-- stage: feed
CREATE TEMP TABLE watched AS
  SELECT *, CASE WHEN page_time BETWEEN 0 AND 1e9 THEN page_time ELSE 0 END AS seconds,
         try_cast(CASE WHEN stamp > 1e11 THEN stamp ELSE stamp * 1000 END AS BIGINT) AS ts
  FROM (SELECT user_idx, whole(user_idx) AS user_id, whole(d.note_idx) AS item_id,
               acted(d.click) AS clicked, $recommendation_liked AS liked, try_cast(d.page_time AS DOUBLE) AS page_time,
               try_cast(d.$recommendation_stamp AS DOUBLE) AS stamp
        FROM (SELECT user_idx, unnest(rec_result_details_with_idx) AS d
              FROM (FROM recommendation_train UNION ALL BY NAME FROM recommendation_test)));
INSERT INTO rejects SELECT 'recommendation: user_idx is no number (row kept, and of nobody)', count(*), 'user_idx ' || min(user_idx)
  FROM watched WHERE user_id IS NULL AND user_idx IS NOT NULL;
INSERT INTO rejects SELECT 'recommendation: no time between 2000 and 2100', count(*), 'note_idx ' || min(item_id)
  FROM watched WHERE ts IS NULL OR ts NOT BETWEEN $earliest AND $latest;
INSERT INTO rejects SELECT 'recommendation: note that notes lacks', count(*), 'note_idx ' || min(item_id)
  FROM watched ANTI JOIN items USING (item_id) WHERE ts BETWEEN $earliest AND $latest;
CREATE TEMP TABLE feed AS
  SELECT user_id, item_id, ts, bool_or(clicked) AS clicked, bool_or(liked) AS liked,
         round(1000 * max(watched.seconds))::BIGINT AS watch_ms,
         coalesce(round(1000 * min(CASE WHEN note.seconds BETWEEN 0 AND 1e9 THEN note.seconds END)), 0)::BIGINT AS duration_ms,
         count(*) AS times
  FROM watched JOIN note USING (item_id) WHERE ts BETWEEN $earliest AND $latest GROUP BY user_id, item_id, ts;
INSERT INTO rejects SELECT 'recommendation: row that is there again (acts are joined)', coalesce(sum(times - 1), 0),
    'note_idx ' || min(item_id) FROM feed WHERE times > 1;
