-- One table of events and one of items (views: events, catalogue) -> the log contract. Names with a dollar are columns of yours.

-- stage: items
CREATE TEMP TABLE raw_items AS
  SELECT row_number() OVER () AS row, $item_key AS item_id, "$title" AS title, "$description" AS description, $tags AS tags,
         try_cast("$views" AS BIGINT) AS views, try_cast("$likes" AS BIGINT) AS likes, try_cast("$duration_s" AS DOUBLE) AS seconds
  FROM catalogue;
INSERT INTO rejects SELECT 'items: no id', count(*), min(title) FROM raw_items WHERE item_id IS NULL;
INSERT INTO rejects SELECT 'items: item listed again (the first is taken)', count(*) - count(DISTINCT item_id), '' FROM raw_items
  WHERE item_id IS NOT NULL;
CREATE TEMP TABLE items AS
  SELECT item_id, title::VARCHAR AS ocr_cover, description::VARCHAR AS photo_caption, tags::VARCHAR AS keyword,
         NULL::VARCHAR AS click_query, CASE WHEN views >= 0 THEN views END AS play_cnt,
         CASE WHEN likes >= 0 THEN likes END AS like_cnt, NULL::BIGINT AS long_view_cnt, NULL::BIGINT AS download_cnt,
         CASE WHEN seconds BETWEEN 0 AND 1e9 THEN seconds ELSE 0 END AS seconds
  FROM raw_items WHERE item_id IS NOT NULL QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY row) = 1;
DROP TABLE raw_items;

-- stage: events
CREATE TEMP TABLE told AS
  SELECT row_number() OVER () AS row, $moment AS ts, nullif(trim("$user"::VARCHAR), '') AS user_id,
         nullif("$session"::VARCHAR, '') AS session, $event AS event, $event_written AS written,
         nullif("$surface"::VARCHAR, '') AS surface, nullif("$request"::VARCHAR, '') AS request, $item AS item_id,
         "$query"::VARCHAR AS query, try_cast("$position" AS BIGINT) AS position, try_cast("$seconds" AS DOUBLE) AS seconds
  FROM events;
INSERT INTO rejects SELECT 'events: of the kind ' || coalesce(written, '(none)'), count(*), 'row ' || min(row)
  FROM told WHERE event IS NULL GROUP BY written;
INSERT INTO rejects SELECT 'events: no time between 2000 and 2100', count(*), 'row ' || min(row)
  FROM told WHERE event IS NOT NULL AND (ts IS NULL OR ts NOT BETWEEN $earliest AND $latest);
INSERT INTO rejects SELECT 'events: neither user nor session', count(*), 'row ' || min(row)
  FROM told WHERE event IS NOT NULL AND ts BETWEEN $earliest AND $latest AND user_id IS NULL AND session IS NULL;
-- Apps send events again.
CREATE TEMP TABLE once AS
  SELECT ts, user_id, session, event, surface, request, item_id, query, position, seconds, min(row) AS row, count(*) AS times
  FROM told WHERE event IS NOT NULL AND ts BETWEEN $earliest AND $latest AND (user_id IS NOT NULL OR session IS NOT NULL)
  GROUP BY ALL;
DROP TABLE told;
INSERT INTO rejects SELECT 'events: event that was sent again', coalesce(sum(times - 1), 0), 'row ' || min(row) FROM once
  WHERE times > 1;

-- stage: sessions
-- Where no session is told, a new one begins after $gap ms without an event of the user.
CREATE TEMP TABLE in_session AS
  SELECT * EXCLUDE (session, begins, times),
         coalesce(session, user_id || ' #' || sum(begins) OVER (PARTITION BY user_id ORDER BY ts, row)) AS session
  FROM (SELECT *, (ts - lag(ts, 1, -$gap) OVER (PARTITION BY user_id ORDER BY ts, row) >= $gap)::BIGINT AS begins FROM once);
DROP TABLE once;
-- Where no request is told, what happens after a search belongs to it until the session's next search.
CREATE TEMP TABLE placed AS
  SELECT * EXCLUDE (request, searches),
         coalesce(request, CASE WHEN searches > 0 THEN session || ' /' || searches END) AS request_id,
         coalesce(surface = 'search', event = 'search' OR request IS NOT NULL OR searches > 0) AS in_search
  FROM (SELECT *, sum((event = 'search')::BIGINT) OVER (PARTITION BY session ORDER BY ts, event <> 'search', row) AS searches
        FROM in_session);
DROP TABLE in_session;
CREATE TEMP TABLE searches AS
  -- A session is somebody, even where nobody has logged in.
  SELECT request_id, coalesce(arg_min(user_id, row), 'session ' || arg_min(session, row)) AS user_id,
         coalesce(arg_min(query, row), '') AS query, min(ts) AS ts
  FROM placed WHERE event = 'search' GROUP BY request_id;
INSERT INTO rejects SELECT 'events: further searches of one request (the first tells the query)', count(*) - count(DISTINCT request_id), ''
  FROM placed WHERE event = 'search';

-- stage: results and feed
CREATE TEMP TABLE acts AS
  SELECT in_search, CASE WHEN in_search THEN request_id ELSE session END AS place, item_id, arg_min(user_id, row) AS user_id,
         arg_min(session, row) AS session, min(position) AS position, min(row) AS row, min(ts) AS ts,
         bool_or(event = 'impression') AS shown, bool_or(event = 'click') AS clicked, bool_or(event = 'like') AS liked,
         round(1000 * coalesce(sum(CASE WHEN seconds BETWEEN 0 AND 1e9 THEN seconds END), 0))::BIGINT AS watch_ms,
         count(*) AS rows
  FROM placed WHERE event <> 'search' AND item_id IS NOT NULL GROUP BY ALL;
INSERT INTO rejects SELECT 'events: no item', count(*), 'row ' || min(row) FROM placed WHERE event <> 'search' AND item_id IS NULL;
INSERT INTO rejects SELECT 'events: of items that the catalogue lacks', coalesce(sum(rows), 0), 'item ' || min(item_id)
  FROM acts ANTI JOIN items USING (item_id);
INSERT INTO rejects SELECT 'events: results without a search', coalesce(sum(rows), 0), 'row ' || min(row)
  FROM acts SEMI JOIN items USING (item_id) WHERE in_search AND (place IS NULL OR place NOT IN (SELECT request_id FROM searches));
INSERT INTO rejects SELECT 'events: clicked, liked or watched without an impression (taken as shown)', count(*), 'row ' || min(row)
  FROM acts SEMI JOIN items USING (item_id) WHERE NOT shown;
CREATE TEMP TABLE candidates AS
  SELECT place AS request_id, item_id, 'exposed' AS stage, clicked, liked, watch_ms,
         row_number() OVER (PARTITION BY place ORDER BY position NULLS LAST, ts, row)::INTEGER AS position
  FROM acts SEMI JOIN items USING (item_id) WHERE in_search AND place IN (SELECT request_id FROM searches);
CREATE TEMP TABLE feed AS
  SELECT coalesce(user_id, 'session ' || session) AS user_id, item_id, ts, clicked, liked, watch_ms,
         round(1000 * seconds)::BIGINT AS duration_ms
  FROM acts JOIN items USING (item_id) WHERE NOT in_search;
