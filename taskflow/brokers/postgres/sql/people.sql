-- What a person changes.

-- Take jobs that wait out of their lines, into a final state (6 cancelled, 7 expired). Whether this one did wait.
CREATE FUNCTION leave_line(j job, end_state integer, now float8) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    was text := 'ready';
BEGIN
    DELETE FROM ready r USING line l WHERE l.queue = j.queue AND l.key = j.lane AND l.gates = j.gates
        AND l.priority = j.priority
        AND l.kind = kind_of(j.gates, j.lost)
        AND r.line = l.id AND r.due_at = j.due_at AND r.seq = j.seq;
    IF NOT FOUND THEN
        was := 'scheduled';
        DELETE FROM scheduled s WHERE s.queue = j.queue AND s.due_at = j.due_at AND s.seq = j.seq;
        IF NOT FOUND THEN RETURN false; END IF;
    END IF;
    PERFORM finish(j, end_state, j.attempts, 0, j.started_at, now, was, NULL, false);
    RETURN true;
END $$;

-- For each: 0 cancelled, 1 requested, 2 final, 3 missing.
CREATE FUNCTION cancel_v1(job_ids text[], fixed_at float8) RETURNS integer[] LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    now float8 := now_s(fixed_at);
    answers integer[] := array_fill(3, ARRAY[cardinality(job_ids)]);
    one record; j job; finals text[] := '{}'; looks integer;
BEGIN
    FOR one IN SELECT a.n, x.seq, x.id FROM unnest(job_ids) WITH ORDINALITY a(id, n) JOIN job x ON x.id = a.id
            ORDER BY x.seq, a.n LOOP
        looks := 0;
        LOOP  -- a claim or a settle may move it under our eyes
            SELECT * INTO j FROM job WHERE seq = one.seq;
            EXIT WHEN NOT FOUND;
            IF leave_line(j, 6, now) THEN
                answers[one.n] := 0; finals := finals || one.id;
                EXIT;
            END IF;
            UPDATE running SET is_cancelled = true WHERE seq = j.seq;
            IF FOUND THEN answers[one.n] := 1; EXIT; END IF;
            PERFORM 1 FROM finished WHERE seq = j.seq;
            IF FOUND THEN answers[one.n] := 2; EXIT; END IF;
            looks := looks + 1;
            IF looks > 20 AND state_of(j.seq) = 2 THEN  -- it has no line: nobody would ever claim it
                DELETE FROM ready WHERE expires_at = j.expires_at AND seq = j.seq;
                CONTINUE WHEN NOT FOUND AND state_of(j.seq) <> 2;  -- in no table at all is as good as ready
                PERFORM finish(j, 6, j.attempts, 0, j.started_at, now, 'ready', NULL, false);
                answers[one.n] := 0; finals := finals || one.id;
                EXIT;
            END IF;
        END LOOP;
    END LOOP;
    IF cardinality(finals) > 0 THEN PERFORM tell_finals(finals, now); END IF;
    RETURN answers;
END $$;

-- For each: 0 ready, 1 not dead, 2 its key is taken, 3 missing.
CREATE FUNCTION retry_v1(job_ids text[], fixed_at float8) RETURNS integer[] LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    now float8 := now_s(fixed_at);
    answers integer[] := array_fill(3, ARRAY[cardinality(job_ids)]);
    one record; f finished; back bigint[] := '{}';
BEGIN
    PERFORM 1 FROM finished x WHERE x.seq IN (SELECT j.seq FROM job j WHERE j.id = ANY (job_ids))
        ORDER BY x.seq FOR UPDATE;
    FOR one IN SELECT a.n, x.seq, x.task, x.key, x.expires_s, x.queue, x.gates
            FROM unnest(job_ids) WITH ORDINALITY a(id, n) JOIN job x ON x.id = a.id ORDER BY x.task, x.key, a.n LOOP
        SELECT * INTO f FROM finished x WHERE x.seq = one.seq;
        IF f.seq IS NULL OR f.state <> 5 THEN answers[one.n] := 1; CONTINUE; END IF;
        IF one.key IS NOT NULL THEN
            INSERT INTO job_key (task, key, seq) VALUES (one.task, one.key, one.seq) ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN answers[one.n] := 2; CONTINUE; END IF;
        END IF;
        DELETE FROM finished x WHERE x.seq = one.seq;
        UPDATE job SET attempts = 0, snoozes = 0, lost = 0, settled = f.token, due_at = now, ready_at = NULL,
            expires_at = now + one.expires_s, started_at = f.started_at, reason = NULL WHERE seq = one.seq;
        INSERT INTO count_delta (queue, ready, dead, at) VALUES (one.queue, 1, -1, now);
        IF one.gates <> '' THEN
            INSERT INTO gate_delta (queue, gate, pending) SELECT one.queue, g, 1 FROM unnest(gates_of(one.gates)) g;
        END IF;
        answers[one.n] := 0;
        back := back || one.seq;
    END LOOP;
    IF cardinality(back) > 0 THEN
        PERFORM place(back);
        PERFORM tell_work(now);
    END IF;
    RETURN answers;
END $$;

-- Forget those of these jobs that are still final (a person may have had one retried meanwhile): how many. The caller has
-- locked them.
CREATE FUNCTION forget(seqs bigint[], now float8) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    ended bigint[];
BEGIN
    WITH gone AS (DELETE FROM finished WHERE seq = ANY (seqs) RETURNING *),
    results AS (DELETE FROM result r USING gone g WHERE r.batch = g.batch AND r.finished_at = g.finished_at
        AND r.seq = g.seq),
    counted AS (INSERT INTO count_delta (queue, dead, at)
        SELECT j.queue, -count(*), now FROM gone g JOIN job j ON j.seq = g.seq WHERE g.state = 5 GROUP BY j.queue)
    SELECT coalesce(array_agg(g.seq), '{}') INTO ended FROM gone g;
    DELETE FROM job WHERE seq = ANY (ended);
    DELETE FROM note WHERE seq = ANY (ended);
    DELETE FROM error WHERE seq = ANY (ended);
    RETURN cardinality(ended);
END $$;

CREATE FUNCTION pause_v1(queue_name text, paused boolean, fixed_at float8) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    number integer := queue_named(queue_name);
BEGIN
    UPDATE queue SET is_paused = paused WHERE id = number;
    IF NOT paused THEN PERFORM tell_work(now_s(fixed_at)); END IF;
END $$;

-- Purge some jobs in this state whose number is above `after`: how many, and where to go on (NULL: that was all).
CREATE FUNCTION purge_v1(wanted integer, queue_name text, task_name text, after bigint, most integer, fixed_at float8,
    OUT n integer, OUT next_after bigint) LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    found bigint[]; now float8 := now_s(fixed_at);
BEGIN
    found := ARRAY(SELECT j.seq FROM job j WHERE j.seq > after AND state_of(j.seq) = wanted
        AND (queue_name IS NULL OR j.queue = (SELECT q.id FROM queue q WHERE q.name = queue_name))
        AND (task_name IS NULL OR j.task = task_name) ORDER BY j.seq LIMIT most);
    n := cardinality(found);
    IF n = most THEN next_after := found[n]; END IF;
    IF wanted > 3 THEN
        PERFORM 1 FROM finished x WHERE x.seq = ANY (found) ORDER BY x.seq FOR UPDATE;
        n := forget(found, now);
    ELSE
        PERFORM cancel_v1(ARRAY(SELECT j.id FROM job j WHERE j.seq = ANY (found)), fixed_at);
    END IF;
END $$;
