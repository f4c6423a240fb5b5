-- One table of events and one of items (views: events, catalogue) -> the log contract. Names with a dollar are columns of yours.

-- stage: items
-- Whether something is written that is neither a number within the bounds nor NaN, which pandas writes for none.
CREATE TEMP MACRO odd(written, low, high) AS
  coalesce(nullif(lower(trim(written::VARCHAR)), ''), 'nan') <> 'nan' AND NOT coalesce(try_cast(written AS DOUBLE) BETWEEN low AND high, false);
CREATE TEMP TABLE raw_items AS
  SELECT row_number() OVER () AS row, $item_key AS item_id, $title AS title, $description AS description, $tags AS tags,
         try_cast($views AS BIGINT) AS views, try_cast($likes AS BIGINT) AS likes, try_cast($duration_s AS DOUBLE) AS seconds,
         odd($views, 0, 9e18) OR odd($likes, 0, 9e18) OR odd($duration_s, 0, 1e9) AS odd
  FROM catalogue;
INSERT INTO rejects SELECT 'items: no id', count(*), min(title) FROM raw_items WHERE item_id IS NULL;
INSERT INTO rejects SELECT 'items: item listed again (the first is taken)', count(*) - count(DISTINCT item_id), '' FROM raw_items
  WHERE item_id IS NOT NULL;
INSERT INTO rejects SELECT 'items: views, likes or duration_s that is no number from 0 (left empty; rows kept)', count(*), 'row ' || min(row)
  FROM raw_items WHERE item_id IS NOT NULL AND odd;
CREATE TEMP TABLE items AS
  SELECT item_id, title::VARCHAR AS ocr_cover, description::VARCHAR AS photo_caption, tags::VARCHAR AS keyword,
         NULL::VARCHAR AS click_query, CASE WHEN views >= 0 THEN views END AS play_cnt,
         CASE WHEN likes >= 0 THEN likes END AS like_cnt, NULL::BIGINT AS long_view_cnt, NULL::BIGINT AS download_cnt,
         CASE WHEN seconds BETWEEN 0 AND 1e9 THEN seconds ELSE 0 END AS seconds
  FROM raw_items WHERE item_id IS NOT NULL QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY row) = 1;
DROP TABLE raw_items;

-- stage: events
CREATE TEMP TABLE told AS
  SELECT row_number() OVER () AS row, $moment AS ts, $user AS user_id,
         $session AS session, $event AS event, $event_written AS written,
         nullif(lower(trim($surface)), '') AS surface, $request AS request, $item AS item_id,
         $query AS query, try_cast($position AS BIGINT) AS position, try_cast($seconds AS DOUBLE) AS seconds,
         odd($position, -9e18, 9e18) AS odd_position, odd($seconds, 0, 1e9) AS odd_seconds,
         CASE WHEN ts BETWEEN $earliest AND $latest THEN NULL ELSE coalesce($time::VARCHAR, '') END AS no_time
  FROM events;
INSERT INTO rejects SELECT 'events: of the kind ' || coalesce(written, '(none)'), count(*), 'row ' || min(row)
  FROM told WHERE event IS NULL GROUP BY written;
INSERT INTO rejects SELECT 'events: no time that can be read, from 2000 to 2100', count(*), 'row ' || min(row) || ': ' || arg_min(no_time, row)
  FROM told WHERE event IS NOT NULL AND no_time IS NOT NULL;
INSERT INTO rejects SELECT 'events: position that is no number (left empty; rows kept)', count(*), 'row ' || min(row)
  FROM told WHERE event IS NOT NULL AND odd_position;
INSERT INTO rejects SELECT 'events: seconds that are no number from 0 (left empty; rows kept)', count(*), 'row ' || min(row)
  FROM told WHERE event IS NOT NULL AND odd_seconds;
INSERT INTO rejects SELECT 'events: neither user nor session', count(*), 'row ' || min(row)
  FROM told WHERE event IS NOT NULL AND no_time IS NULL AND user_id IS NULL AND session IS NULL;
-- Apps send events again.
CREATE TEMP TABLE once AS
  SELECT ts, (ts + $offset) // 86400000 AS day, user_id, session, event, surface, request, item_id, query, position, seconds,
         min(row) AS row, count(*) AS times
  FROM told WHERE event IS NOT NULL AND no_time IS NULL AND (user_id IS NOT NULL OR session IS NOT NULL)
  GROUP BY ALL;
DROP TABLE told;
INSERT INTO rejects SELECT 'events: event that was sent again', coalesce(sum(times - 1), 0), 'row ' || min(row) FROM once
  WHERE times > 1;

-- stage: people
-- Session ids are not always unique ('1' is everybody's first visit): a session is what one person did under its id. An event
-- without a user is of the session's only user, whom that day or an earlier one named: a later day changes nothing before it.
CREATE TEMP TABLE named AS
  SELECT session, user_id, min(day) AS since FROM once WHERE session IS NOT NULL AND user_id IS NOT NULL GROUP BY ALL;
INSERT INTO rejects SELECT 'events: session that several users have (each has one of their own; rows kept)', count(*), 'session ' || min(session)
  FROM (SELECT session FROM named GROUP BY session HAVING count(*) > 1);
CREATE TEMP TABLE of_session AS
  SELECT session, day, count(*) AS users, min(user_id) AS known
  FROM (SELECT DISTINCT session, day FROM once WHERE user_id IS NULL) JOIN named USING (session) WHERE since <= day GROUP BY ALL;
-- Servers know the user and no session, apps the session and no user: then the request tells who it was.
CREATE TEMP TABLE of_request AS
  SELECT request, day, count(DISTINCT user_id) AS users, min(user_id) AS known
  FROM once WHERE request IS NOT NULL AND user_id IS NOT NULL AND session IS NULL GROUP BY ALL;
CREATE TEMP TABLE people AS
  SELECT nameless.* EXCLUDE (of_nobody, user_id, times), coalesce(user_id, CASE WHEN s.users = 1 THEN s.known WHEN r.users = 1 THEN r.known
         -- A session is somebody, even where nobody has logged in.
         WHEN s.users IS NULL THEN 'session ' || nameless.session END) AS who
  FROM (SELECT *, CASE WHEN user_id IS NULL THEN session END AS of_nobody FROM once) nameless
    LEFT JOIN of_session s ON s.session = of_nobody AND s.day = nameless.day
    LEFT JOIN of_request r ON r.request = nameless.request AND r.day = nameless.day;
DROP TABLE once;
INSERT INTO rejects SELECT 'events: without a user, of a session that several users have', count(*), 'row ' || min(row)
  FROM people WHERE who IS NULL;

-- stage: sessions
-- A session, told or not, ends after $gap ms without an event of its user.
CREATE TEMP TABLE visits AS
  SELECT * EXCLUDE begins, sum(begins) OVER (PARTITION BY who, session ORDER BY ts, row) AS visit
  FROM (SELECT *, (ts - lag(ts, 1, -$gap) OVER (PARTITION BY who, session ORDER BY ts, row) >= $gap)::BIGINT AS begins
        FROM people WHERE who IS NOT NULL);
DROP TABLE people;
-- Where no request is told, what happens after a search belongs to it until the session's next search.
CREATE TEMP TABLE placed AS
  SELECT * EXCLUDE (request, searches), request IS NOT NULL AS told,
         coalesce(request, CASE WHEN searches > 0 THEN concat_ws(' ', who, session, '#' || visit, '/' || searches) END) AS place,
         coalesce(surface = 'search', event = 'search' OR request IS NOT NULL OR searches > 0) AS in_search
  FROM (SELECT *, sum((event = 'search')::BIGINT) OVER (PARTITION BY who, session, visit ORDER BY ts, event <> 'search', row) AS searches
        FROM visits);
DROP TABLE visits;
-- A search is one person's on one day. Of those that share an id the first keeps it.
CREATE TEMP TABLE asked AS
  SELECT who, told, place, day, coalesce(arg_min(query, row), '') AS query, min(ts) AS ts, min(row) AS row, count(*) AS times
  FROM placed WHERE event = 'search' GROUP BY ALL;
CREATE TEMP TABLE numbered AS SELECT *, row_number() OVER (PARTITION BY told, place ORDER BY ts, row) AS of_its_id FROM asked;
CREATE TEMP TABLE searches AS
  SELECT CASE WHEN of_its_id = 1 THEN place ELSE concat_ws(' ', place, who, DATE '1970-01-01' + day::INTEGER) END AS request_id,
         who AS user_id, query, ts, who, told, place, day
  FROM numbered;
INSERT INTO rejects SELECT 'events: request that another user or an earlier day has too (taken as another one; rows kept)', count(*),
    'request ' || min(place) FROM numbered WHERE of_its_id > 1;
INSERT INTO rejects SELECT 'events: further searches of one request (the first tells the query)', coalesce(sum(times - 1), 0),
    'request ' || min(place) FROM asked WHERE times > 1;

INSERT INTO rejects SELECT 'events: search without a query (row kept, and not mined)', count(*), 'request ' || min(request_id)
  FROM searches WHERE trim(query) = '';

-- stage: results and feed
-- Never over midnight: what happens on the test day must not be read off the train day.
CREATE TEMP TABLE acts AS
  SELECT in_search, who, day, CASE WHEN in_search THEN told END AS told, CASE WHEN in_search THEN place END AS place,
         CASE WHEN NOT in_search THEN session END AS session, CASE WHEN NOT in_search THEN visit END AS visit, item_id,
         min(position) AS position, min(row) AS row, min(ts) AS ts, bool_or(event = 'impression') AS shown,
         bool_or(event = 'click') AS clicked, bool_or(event = 'like') AS liked,
         round(1000 * coalesce(sum(CASE WHEN seconds BETWEEN 0 AND 1e9 THEN seconds END), 0))::BIGINT AS watch_ms,
         count(*) AS rows
  FROM placed WHERE event <> 'search' AND item_id IS NOT NULL GROUP BY ALL;
INSERT INTO rejects SELECT 'events: no item', count(*), 'row ' || min(row) FROM placed WHERE event <> 'search' AND item_id IS NULL;
INSERT INTO rejects SELECT 'events: of items that the catalogue lacks', coalesce(sum(rows), 0), 'item ' || min(item_id)
  FROM acts ANTI JOIN items USING (item_id);
INSERT INTO rejects SELECT 'events: clicked, liked or watched without an impression (taken as shown)', count(*), 'row ' || min(row)
  FROM acts SEMI JOIN items USING (item_id) WHERE NOT shown;
CREATE TEMP TABLE results AS
  SELECT acts.*, request_id, first.day AS searched
  FROM acts SEMI JOIN items USING (item_id) LEFT JOIN searches USING (who, told, place, day)
    LEFT JOIN (SELECT who, told, place, min(day) AS day FROM searches GROUP BY ALL) first USING (who, told, place)
  WHERE in_search;
INSERT INTO rejects
  SELECT CASE WHEN searched < day THEN 'events: results of a search of an earlier day' ELSE 'events: results without a search' END,
         sum(rows), 'row ' || min(row) FROM results WHERE request_id IS NULL GROUP BY 1;
CREATE TEMP TABLE candidates AS
  SELECT request_id, item_id, 'exposed' AS stage, clicked, liked, watch_ms,
         row_number() OVER (PARTITION BY request_id ORDER BY position NULLS LAST, ts, row)::INTEGER AS position
  FROM results WHERE request_id IS NOT NULL;
CREATE TEMP TABLE feed AS
  SELECT who AS user_id, item_id, ts, clicked, liked, watch_ms, round(1000 * seconds)::BIGINT AS duration_ms
  FROM acts JOIN items USING (item_id) WHERE NOT in_search;
