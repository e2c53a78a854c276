-- Jobs into the queue.

CREATE FUNCTION decay(per_s float8, at float8, now float8) RETURNS float8 LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN now - at > 600 THEN 0 ELSE per_s * power(2, -greatest(0, now - at) / 10) END $$;

-- One row for each queue, and for each queue and gate, instead of many. One transaction at once.
CREATE FUNCTION fold(now float8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock('count_delta'::regclass::oid::integer, 0) THEN RETURN; END IF;
    IF (SELECT count(*) FROM (SELECT FROM count_delta LIMIT 50) x) >= 50 THEN
        WITH gone AS (DELETE FROM count_delta RETURNING *)
        INSERT INTO count_delta (queue, ready, scheduled, running, dead, per_s, at)
        SELECT queue, sum(ready), sum(scheduled), sum(running), sum(dead), sum(decay(per_s, at, now)), now
        FROM gone GROUP BY queue;
    END IF;
    WITH many AS MATERIALIZED (
        SELECT queue, gate FROM gate_delta GROUP BY queue, gate HAVING count(*) > 1 OR sum(pending) = 0 LIMIT 1000
    ), gone AS (
        DELETE FROM gate_delta d USING many m WHERE d.queue = m.queue AND d.gate = m.gate RETURNING d.*
    )
    INSERT INTO gate_delta (queue, gate, pending)
    SELECT queue, gate, sum(pending) FROM gone GROUP BY queue, gate HAVING sum(pending) <> 0;
END $$;

-- The number of the queue of this name, which is made if need be.
CREATE FUNCTION queue_named(queue_name text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    number integer;
BEGIN
    LOOP
        SELECT q.id INTO number FROM queue q WHERE q.name = queue_name;
        IF FOUND THEN RETURN number; END IF;
        INSERT INTO queue (name) VALUES (queue_name) ON CONFLICT DO NOTHING;
    END LOOP;
END $$;

-- These queues are there, and have had jobs.
CREATE FUNCTION enter_v1(queues text[]) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM queue_named(x.name) FROM (SELECT DISTINCT name COLLATE "C" AS name FROM unnest(queues) y(name) ORDER BY 1) x;
    UPDATE queue SET had_jobs = true WHERE id IN (
        SELECT q.id FROM queue q WHERE q.name = ANY (queues) AND NOT q.had_jobs ORDER BY q.name FOR NO KEY UPDATE);
END $$;

-- Keys for jobs that go in. Returns the places of those whose key a transaction that is still open has taken: that may be
-- held open for long, and is waited for a moment only, by all together.
CREATE FUNCTION take_keys(tasks text[], keys text[], seqs bigint[], ok boolean[]) RETURNS SETOF integer
LANGUAGE plpgsql SET search_path FROM CURRENT SET lock_timeout = '2s' AS $$
DECLARE i integer;
BEGIN
    BEGIN
        INSERT INTO job_key (task, key, seq) SELECT tasks[x.n] COLLATE "C", x.key COLLATE "C", seqs[x.n]
        FROM unnest(keys) WITH ORDINALITY x(key, n) WHERE x.key IS NOT NULL AND ok[x.n] ORDER BY 1, 2;
        RETURN;
    EXCEPTION WHEN lock_not_available THEN
        PERFORM set_config('lock_timeout', '10ms', true);
    END;
    FOR i IN SELECT x.n FROM unnest(keys) WITH ORDINALITY x(key, n) WHERE x.key IS NOT NULL AND ok[x.n]
            ORDER BY tasks[x.n] COLLATE "C", x.key COLLATE "C" LOOP
        BEGIN
            INSERT INTO job_key (task, key, seq) VALUES (tasks[i], keys[i], seqs[i]);
        EXCEPTION WHEN lock_not_available THEN RETURN NEXT i;
        END;
    END LOOP;
END $$;

-- With `is_borrowed` the transaction is a caller's, who may hold it open for long: it must make no row that others want to
-- make too. Its queues are there (`enter_v1`); where a line is missing, the jobs are scheduled for now: the claim that
-- finds them makes it.
-- Jobs that were not new, by their places in the batch: 1 same id, 2 same key (`holder` has it), 3 the queue is full,
-- 4 a gate's half of it is; then `over` tells how many jobs must leave first; 5 its key is held by an open transaction.
CREATE FUNCTION submit_v1(
    ids text[], tasks text[], queues text[], payloads bytea[], priorities integer[], lanes text[], gates text[],
    keys text[], delays_s float8[], expires_s float8[], expire_reasons text[], batches text[],
    bound_queues text[], bounds bigint[], is_borrowed boolean, fixed_at float8
) RETURNS TABLE (place_n integer, refusal integer, holder text, over bigint, drain_per_s float8)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    now float8 := now_s(fixed_at);
    n integer := cardinality(ids);
    q record; r record; i integer; g text; bound bigint; half bigint; counted bigint; n_deltas bigint;
    is_slow boolean; is_placed boolean; seqs bigint[];
    filled jsonb := '{}'; refused jsonb := '{}'; line_name text; ok boolean[];
    queue_ids integer[]; batch_ids integer[];
BEGIN
    IF EXISTS (SELECT FROM unnest(queues) x(name) WHERE NOT EXISTS (
            SELECT FROM queue y WHERE y.name = x.name AND y.had_jobs)) THEN
        PERFORM enter_v1(queues);
    END IF;
    queue_ids := ARRAY(SELECT y.id FROM unnest(queues) WITH ORDINALITY x(name, n) JOIN queue y ON y.name = x.name
        ORDER BY x.n);
    IF array_remove(batches, '') <> '{}' THEN
        UPDATE batch b SET named_at = now FROM (
            SELECT x.id FROM batch x WHERE x.name = ANY (batches) ORDER BY x.name FOR UPDATE) y WHERE b.id = y.id;
    END IF;
    is_slow := array_remove(keys, NULL) <> '{}' OR EXISTS (SELECT FROM job j WHERE j.id = ANY (ids))
        OR (n > 1 AND (SELECT count(DISTINCT x) FROM unnest(ids) x) < n);
    FOR q IN SELECT y.id, x.name, x.most, count(z.name) AS wanted
            FROM unnest(bound_queues, bounds) x(name, most) JOIN queue y ON y.name = x.name
            JOIN unnest(queues) z(name) ON z.name = x.name GROUP BY 1, 2, 3 LOOP
        SELECT coalesce(sum(d.ready + d.scheduled), 0), count(*) INTO counted, n_deltas
        FROM count_delta d WHERE d.queue = q.id;
        IF n_deltas > 2000 AND NOT is_borrowed THEN PERFORM fold(now); END IF;
        filled := filled || jsonb_build_object(q.name, counted);
        is_slow := is_slow OR counted + q.wanted > q.most;
    END LOOP;
    IF NOT is_slow AND array_remove(gates, '') <> '{}' AND cardinality(bounds) > 0 THEN
        is_slow := true;
    END IF;
    IF is_slow THEN
        FOR i IN 1 .. n LOOP
            place_n := i; holder := NULL; over := 0; refusal := 0;
            IF EXISTS (SELECT FROM job j WHERE j.id = ids[i]) OR ids[i] = ANY (ids[1:i - 1]) THEN
                -- within the batch only if the first of them went in
                IF EXISTS (SELECT FROM job j WHERE j.id = ids[i])
                        OR ok[array_position(ids, ids[i])] THEN
                    refusal := 1;
                END IF;
            END IF;
            IF refusal = 0 AND keys[i] IS NOT NULL THEN
                SELECT j.id INTO holder FROM job_key k JOIN job j ON j.seq = k.seq
                WHERE k.task = tasks[i] AND k.key = keys[i];
                IF holder IS NULL THEN
                    SELECT ids[x.n] INTO holder FROM generate_series(1, i - 1) x(n)
                    WHERE ok[x.n] AND tasks[x.n] = tasks[i] AND keys[x.n] = keys[i] LIMIT 1;
                END IF;
                IF holder IS NOT NULL THEN refusal := 2; END IF;
            END IF;
            bound := bounds[array_position(bound_queues, queues[i])];
            IF refusal = 0 AND bound IS NOT NULL THEN
                over := (filled ->> queues[i])::bigint - bound;
                line_name := queues[i];
                IF over >= 0 THEN
                    refusal := 3;
                ELSIF gates[i] <> '' THEN
                    half := greatest(1, bound / 2);
                    FOREACH g IN ARRAY gates_of(gates[i]) LOOP
                        IF NOT filled ? (queues[i] || E'\x1f' || g) THEN
                            filled := filled || jsonb_build_object(queues[i] || E'\x1f' || g, (
                                SELECT coalesce(sum(d.pending), 0) FROM gate_delta d
                                WHERE d.gate = g AND d.queue = queue_ids[i]));
                        END IF;
                        over := (filled ->> (queues[i] || E'\x1f' || g))::bigint - half;
                        line_name := E'\x1f' || g;
                        IF over >= 0 THEN refusal := 4; EXIT; END IF;
                    END LOOP;
                END IF;
                IF refusal > 0 THEN
                    refused := refused || jsonb_build_object(line_name,
                        coalesce((refused ->> line_name)::bigint, 0) + 1);
                    over := over + (refused ->> line_name)::bigint;
                    drain_per_s := (SELECT sum(decay(d.per_s, d.at, now)) FROM count_delta d
                        WHERE d.queue = queue_ids[i]);
                END IF;
            END IF;
            ok[i] := refusal = 0;
            IF refusal > 0 THEN
                RETURN NEXT;
            ELSIF bound IS NOT NULL THEN
                filled := filled || jsonb_build_object(queues[i], (filled ->> queues[i])::bigint + 1);
                IF gates[i] <> '' THEN
                    FOREACH g IN ARRAY gates_of(gates[i]) LOOP
                        filled := filled || jsonb_build_object(queues[i] || E'\x1f' || g,
                            (filled ->> (queues[i] || E'\x1f' || g))::bigint + 1);
                    END LOOP;
                END IF;
            END IF;
        END LOOP;
        IF true <> ALL (ok) THEN RETURN; END IF;
    END IF;
    seqs := ARRAY(SELECT nextval('job_seq') FROM generate_series(1, n));
    IF array_remove(batches, '') <> '{}' THEN
        INSERT INTO batch AS b (name, named_at)
        SELECT DISTINCT x.name COLLATE "C", now FROM unnest(batches) WITH ORDINALITY x(name, n)
        WHERE x.name <> '' AND (ok IS NULL OR ok[x.n]) ORDER BY 1
        ON CONFLICT (name) DO UPDATE SET is_finished = false WHERE b.is_finished;
        batch_ids := ARRAY(SELECT coalesce(b.id, 0) FROM unnest(batches) WITH ORDINALITY x(name, n)
            LEFT JOIN batch b ON b.name = x.name ORDER BY x.n);
    END IF;
    INSERT INTO job (seq, id, queue, priority, submitted_at, due_at, expires_at, expires_s, task, lane, gates, key,
        batch, expire_reason, payload)
    SELECT seqs[x.n], x.id, queue_ids[x.n], priorities[x.n], now, now + greatest(0, delays_s[x.n]),
        now + greatest(0, delays_s[x.n]) + x.expires, x.expires, tasks[x.n], lanes[x.n], gates[x.n], keys[x.n],
        coalesce(batch_ids[x.n], 0), expire_reasons[x.n], payloads[x.n]
    FROM unnest(ids, expires_s) WITH ORDINALITY x(id, expires, n)
    WHERE ok IS NULL OR ok[x.n] ORDER BY x.id COLLATE "C";
    IF array_remove(keys, NULL) <> '{}' THEN
        IF is_borrowed THEN
            INSERT INTO job_key (task, key, seq) SELECT tasks[x.n] COLLATE "C", x.key COLLATE "C", seqs[x.n]
            FROM unnest(keys) WITH ORDINALITY x(key, n) WHERE x.key IS NOT NULL AND ok[x.n] ORDER BY 1, 2;
        ELSE
            FOR q IN SELECT * FROM take_keys(tasks, keys, seqs, ok) x(n) LOOP
                DELETE FROM job WHERE seq = seqs[q.n];
                ok[q.n] := false; place_n := q.n; refusal := 5; holder := NULL; over := 0;
                RETURN NEXT;
            END LOOP;
            IF true <> ALL (ok) THEN RETURN; END IF;
        END IF;
    END IF;
    SELECT array_agg(x.queue) AS queues, array_agg(kind_of(x.gates, 0)) AS kinds, array_agg(x.priority) AS priorities,
        array_agg(x.lane) AS lanes, array_agg(x.gates) AS gates, array_agg(now) AS dues, array_agg(x.seq) AS seqs,
        array_agg(now + x.expires) AS expires
    INTO r FROM unnest(delays_s, queue_ids, priorities::smallint[], lanes, gates, seqs, expires_s)
        WITH ORDINALITY x(delay, queue, priority, lane, gates, seq, expires, n)
    WHERE x.delay <= 0 AND (ok IS NULL OR ok[x.n]);
    is_placed := CASE
        WHEN r.seqs IS NULL THEN false
        -- An older snapshot than this statement's shows lines that are closed: locking one would fail.
        WHEN is_borrowed AND current_setting('transaction_isolation') <> 'read committed' THEN false
        ELSE line_up(r.queues, r.kinds, r.priorities, r.lanes, r.gates, r.dues, r.seqs, r.expires, NOT is_borrowed) END;
    IF NOT is_placed OR 0 < ANY (delays_s) THEN
        INSERT INTO scheduled (queue, due_at, seq, expires_at)
        SELECT j.queue, j.due_at, j.seq, j.expires_at FROM unnest(delays_s) WITH ORDINALITY x(delay, n)
        JOIN job j ON j.seq = seqs[x.n] WHERE x.delay > 0 OR NOT is_placed;
    END IF;
    INSERT INTO count_delta (queue, ready, scheduled, at)
    SELECT queue_ids[x.n], count(*) FILTER (WHERE x.delay <= 0 AND is_placed),
        count(*) FILTER (WHERE x.delay > 0 OR NOT is_placed), now
    FROM unnest(delays_s) WITH ORDINALITY x(delay, n) WHERE ok IS NULL OR ok[x.n] GROUP BY 1;
    IF array_remove(gates, '') <> '{}' THEN
        INSERT INTO gate_delta (queue, gate, pending)
        SELECT queue_ids[x.n], y.name, count(*) FROM unnest(gates) WITH ORDINALITY x(gates, n), gates_of(x.gates) z,
            unnest(z) y(name) WHERE x.gates <> '' AND (ok IS NULL OR ok[x.n]) GROUP BY 1, 2;
    END IF;
    PERFORM tell_work(now);
END $$;
