-- Leases, and what must happen though nobody asks.

CREATE FUNCTION beat_v1(worker_name text, job_ids text[], tokens bigint[], lease_s float8, fixed_at float8,
    said text, OUT lost text[], OUT cancelled text[]) LANGUAGE plpgsql SET search_path FROM CURRENT
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    now float8 := now_s(fixed_at);
    number integer := renew(worker_name, lease_s, now);
    held bigint[]; back bigint[]; missing bigint[]; is_late boolean; found_ids text[];
BEGIN
    IF said IS NOT NULL THEN PERFORM say(worker_name, lease_s, now, said); END IF;
    SELECT array_agg(j.id) FILTER (WHERE r.seq IS NOT NULL), array_agg(j.seq) FILTER (WHERE r.seq IS NOT NULL),
        array_agg(j.seq) FILTER (WHERE r.missed > 0), array_agg(j.id) FILTER (WHERE r.is_cancelled)
    INTO found_ids, held, back, cancelled
    FROM unnest(job_ids, tokens) a(id, token) JOIN job j ON j.id = a.id
    JOIN running r ON r.seq = j.seq AND r.token = a.token AND r.worker = number;
    lost := ARRAY(SELECT x FROM unnest(job_ids) x EXCEPT SELECT unnest(found_ids));
    cancelled := coalesce(cancelled, '{}');
    missing := ARRAY(SELECT r.seq FROM running r WHERE r.worker = number
        AND NOT (r.seq = ANY (coalesce(held, '{}'))));
    IF cardinality(missing) > 0 THEN
        WITH late AS (UPDATE running SET missed = missed + 1 WHERE seq IN (
            SELECT r.seq FROM running r WHERE r.seq = ANY (missing) ORDER BY r.seq FOR UPDATE SKIP LOCKED)
            AND worker = number RETURNING missed)
        SELECT bool_or(missed > 1) INTO is_late FROM late;
        IF is_late THEN UPDATE worker SET has_missed = true WHERE id = number; END IF;
    END IF;
    IF back IS NOT NULL THEN
        UPDATE running SET missed = 0 WHERE seq IN (
            SELECT r.seq FROM running r WHERE r.seq = ANY (back) ORDER BY r.seq FOR UPDATE SKIP LOCKED);
    END IF;
END $$;

CREATE FUNCTION leave_v1(worker_name text) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    -- Locked before it is looked at: a claim that is under way keeps the row until it commits, and holds jobs then.
    PERFORM 1 FROM worker WHERE name = worker_name FOR UPDATE;
    UPDATE worker SET expires_at = -1 WHERE name = worker_name;
    DELETE FROM presence p WHERE p.worker = worker_name;
    DELETE FROM worker w WHERE w.name = worker_name AND NOT EXISTS (SELECT FROM running r WHERE r.worker = w.id);
END $$;

CREATE FUNCTION reclaim_v1(max_lost integer, most integer, errors_kept integer, fixed_at float8, judged_at float8)
RETURNS TABLE (job_id text, task text, queue text, state integer, lost integer, reason text)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now float8 := now_s(fixed_at);
    lease_now float8 := least(now, judged_at); -- a clock that was stepped forward ends no lease
    w record; j job; r record;
    moved integer := 0; is_suspected boolean; is_work boolean;
    names text[] := '{}'; finals text[] := '{}'; back bigint[] := '{}';
BEGIN
    PERFORM fold(now);
    -- Claims of workers whose lease ended, and claims that two beats in a row did not name.
    FOR w IN SELECT x.id, x.expires_at <= lease_now AS is_gone FROM worker x
            WHERE x.expires_at <= lease_now OR x.has_missed ORDER BY x.expires_at FOR UPDATE SKIP LOCKED LOOP
        EXIT WHEN moved >= most;
        is_suspected := EXISTS (SELECT FROM running x JOIN job y ON y.seq = x.seq WHERE x.worker = w.id
            AND (w.is_gone OR x.missed > 1) AND y.lost >= 2);
        FOR r IN SELECT x.* FROM running x WHERE x.worker = w.id AND (w.is_gone OR x.missed > 1)
                ORDER BY x.seq FOR UPDATE SKIP LOCKED LOOP
            DELETE FROM running x WHERE x.seq = r.seq;
            UPDATE job y SET lost = y.lost + (y.lost >= 2 OR NOT is_suspected)::integer, started_at = r.started_at
            WHERE y.seq = r.seq RETURNING * INTO j;
            names := names || gates_of(j.gates);
            IF j.lost - 2 >= max_lost THEN
                PERFORM add_error(j.seq, j.attempts + 1, now, 'WorkerLost',
                    'its worker was lost ' || j.lost || ' times', 'lost', '', errors_kept);
                UPDATE job y SET reason = 'lost' WHERE y.seq = j.seq;
                PERFORM finish(j, 5, j.attempts, 0, r.started_at, now, 'running', NULL, r.is_cancelled);
                state := 5;
            ELSIF r.is_cancelled THEN
                PERFORM finish(j, 6, j.attempts, 0, r.started_at, now, 'running', NULL, r.is_cancelled);
                state := 6;
            ELSE
                state := requeue(j.seq, NULL, now);
                back := back || j.seq;
            END IF;
            IF state > 3 THEN finals := finals || j.id; END IF;
            job_id := j.id; task := j.task; lost := j.lost;
            queue := (SELECT q.name FROM queue q WHERE q.id = j.queue);
            reason := CASE WHEN w.is_gone THEN 'lease_ended' ELSE 'missed_beats' END;
            moved := moved + 1;
            RETURN NEXT;
        END LOOP;
        IF w.is_gone THEN
            DELETE FROM worker x WHERE x.id = w.id AND NOT EXISTS (SELECT FROM running y WHERE y.worker = w.id);
        ELSE
            UPDATE worker x SET has_missed = false WHERE x.id = w.id;
        END IF;
    END LOOP;
    is_work := cardinality(back) > 0;
    IF is_work THEN PERFORM place(back); END IF;
    -- Jobs that waited too long.
    FOR r IN SELECT x.seq FROM (
            SELECT * FROM (SELECT a.seq, a.expires_at FROM ready a WHERE a.expires_at <= now ORDER BY a.expires_at
                LIMIT greatest(0, most - moved) FOR UPDATE SKIP LOCKED) b
            UNION ALL
            SELECT * FROM (SELECT a.seq, a.expires_at FROM scheduled a WHERE a.expires_at <= now ORDER BY a.expires_at
                LIMIT greatest(0, most - moved) FOR UPDATE SKIP LOCKED) c
            ) x ORDER BY x.expires_at LIMIT greatest(0, most - moved) LOOP
        SELECT * INTO j FROM job y WHERE y.seq = r.seq;
        CONTINUE WHEN NOT leave_line(j, 7, now);
        UPDATE job y SET reason = j.expire_reason WHERE y.seq = j.seq;
        finals := finals || j.id;
        job_id := j.id; task := j.task; lost := j.lost; state := 7; reason := j.expire_reason;
        queue := (SELECT q.name FROM queue q WHERE q.id = j.queue);
        RETURN NEXT;
    END LOOP;
    names := names || take_owed(NULL);
    IF cardinality(names) > 0 THEN
        is_work := give_room(names, ARRAY(SELECT 1::bigint FROM unnest(names)),
            ARRAY(SELECT 0::bigint FROM unnest(names)), now) OR is_work;
    END IF;
    IF is_work THEN PERFORM tell_work(now); END IF;
    IF cardinality(finals) > 0 THEN PERFORM tell_finals(finals, now); END IF;
    PERFORM forget_workers(lease_now);
END $$;

-- Forget results, jobs, batches and gates that were kept long enough. Those of unfinished batches stay. One transaction
-- at once does it, and it waits for nobody.
CREATE FUNCTION prune_v1(result_s float8, finished_s float8, dead_s float8, batch_s float8, most integer,
    fixed_at float8) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    now float8 := now_s(fixed_at);
    b integer; s integer; old bigint[]; n integer; left_results integer := most; left_jobs integer := most;
BEGIN
    IF NOT pg_try_advisory_xact_lock('finished'::regclass::oid::integer, 0) THEN RETURN; END IF;
    UPDATE batch SET is_finished = true WHERE id IN (
        SELECT x.id FROM batch x WHERE NOT x.is_finished AND x.named_at <= now - batch_s FOR UPDATE SKIP LOCKED);
    -- Some finished batches at a time, whichever: a look at thousands would keep all the rest of the upkeep waiting.
    FOR b IN SELECT 0 UNION ALL (SELECT x.id FROM batch x WHERE x.is_finished ORDER BY random() LIMIT 100) LOOP
        IF left_results > 0 THEN
            DELETE FROM result WHERE ctid = ANY (ARRAY(SELECT x.ctid FROM result x WHERE x.batch = b
                AND x.finished_at <= now - result_s ORDER BY x.finished_at, x.seq LIMIT left_results));
            GET DIAGNOSTICS n = ROW_COUNT;
            left_results := left_results - n;
        END IF;
        FOREACH s IN ARRAY '{4,6,7,5}'::integer[] LOOP
            EXIT WHEN left_jobs <= 0;
            old := ARRAY(SELECT x.seq FROM finished x WHERE x.batch = b AND x.state = s
                AND x.finished_at <= now - CASE WHEN s = 5 THEN dead_s ELSE finished_s END
                ORDER BY x.finished_at LIMIT left_jobs FOR UPDATE SKIP LOCKED);
            IF cardinality(old) > 0 THEN
                PERFORM forget(old, now);
                left_jobs := left_jobs - cardinality(old);
            END IF;
        END LOOP;
        IF b > 0 THEN
            -- A submit that names it has locked it, perhaps for long.
            DELETE FROM batch WHERE id IN (
                SELECT x.id FROM batch x WHERE x.id = b AND x.is_finished FOR UPDATE SKIP LOCKED)
                AND NOT EXISTS (SELECT FROM job j WHERE j.batch = b AND j.batch > 0);
        END IF;
    END LOOP;
    DELETE FROM gate WHERE name IN (
        SELECT g.name FROM gate g WHERE g.live = 0 AND g.tat <= now
            AND g.held_until + CASE WHEN g.ramp IS NULL THEN 0 ELSE 86400 END <= now
            AND num_nulls(g.max_live, g.max_live_override, g.rate_interval_s, g.rate_override_interval_s) = 4
            AND NOT EXISTS (SELECT FROM gate_delta d WHERE d.gate = g.name)
            AND NOT EXISTS (SELECT FROM parking p WHERE p.gate = g.name)
        LIMIT most FOR UPDATE SKIP LOCKED);
    DELETE FROM listener WHERE id IN (SELECT l.id FROM listener l WHERE l.expires_at <= now FOR UPDATE SKIP LOCKED);
END $$;

-- In how many seconds `claim` may find something; NULL: never, as it looks.
CREATE FUNCTION next_v1(queues text[], is_gated boolean, is_suspects boolean, fixed_at float8) RETURNS float8
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    now float8 := now_s(fixed_at);
    earliest float8;
    kinds smallint[] := ARRAY(SELECT k FROM unnest('{0,1,2,3}'::smallint[]) k
        WHERE (is_gated OR k & 1 = 0) AND (is_suspects OR k & 2 = 0));
    q record;
BEGIN
    FOR q IN SELECT x.id FROM queue x WHERE x.name = ANY (queues) AND NOT x.is_paused LOOP
        IF EXISTS (SELECT FROM unnest(kinds) k JOIN line l ON l.queue = q.id AND l.kind = k AND l.stand = 1
                WHERE EXISTS (SELECT FROM ready r WHERE r.line = l.id)) THEN
            RETURN 0;
        END IF;
        earliest := least(earliest, (SELECT min(s.due_at) FROM scheduled s WHERE s.queue = q.id));
        IF is_gated THEN
            earliest := least(earliest, (SELECT min(p.wake_at) FROM parking p WHERE p.queue = q.id));
        END IF;
    END LOOP;
    RETURN CASE WHEN earliest > now THEN earliest - now WHEN earliest <= now THEN 0 END;
END $$;

-- This broker object wants to be told, for `for_s` seconds.
CREATE FUNCTION listen_v1(listener_id text, wanted integer, for_s float8, fixed_at float8) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO listener AS l (id, kinds, expires_at) VALUES (listener_id, wanted, now_s(fixed_at) + for_s)
    ON CONFLICT (id) DO UPDATE SET kinds = l.kinds | excluded.kinds, expires_at = excluded.expires_at;
    RETURN channel();
END $$;
