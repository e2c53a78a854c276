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
    answers integer[] := '{}'; one text; j job; finals text[] := '{}'; looks integer;
BEGIN
    FOREACH one IN ARRAY job_ids LOOP
        j := NULL; looks := 0;
        SELECT * INTO j FROM job WHERE id = one;
        IF j.seq IS NULL THEN answers := answers || 3; CONTINUE; END IF;
        LOOP  -- a claim or a settle may move it under our eyes
            IF leave_line(j, 6, now) THEN
                answers := answers || 0; finals := finals || one;
                EXIT;
            END IF;
            UPDATE running SET is_cancelled = true WHERE seq = j.seq;
            IF FOUND THEN answers := answers || 1; EXIT; END IF;
            PERFORM 1 FROM finished WHERE seq = j.seq;
            IF FOUND THEN answers := answers || 2; EXIT; END IF;
            SELECT * INTO j FROM job WHERE id = one;
            IF NOT FOUND THEN answers := answers || 3; EXIT; END IF;
            looks := looks + 1;
            IF looks > 20 AND state_of(j.seq) = 2 THEN  -- it has no line: nobody would ever claim it
                DELETE FROM ready WHERE expires_at = j.expires_at AND seq = j.seq;
                PERFORM finish(j, 6, j.attempts, 0, j.started_at, now, 'ready', NULL, false);
                answers := answers || 0; finals := finals || one;
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
    answers integer[] := '{}'; one text; j job; f finished; is_any boolean := false;
BEGIN
    FOREACH one IN ARRAY job_ids LOOP
        j := NULL; f := NULL;
        SELECT * INTO j FROM job WHERE id = one;
        IF j.seq IS NULL THEN answers := answers || 3; CONTINUE; END IF;
        SELECT * INTO f FROM finished x WHERE x.seq = j.seq FOR UPDATE;
        IF f.seq IS NULL OR f.state <> 5 THEN answers := answers || 1; CONTINUE; END IF;
        IF j.key IS NOT NULL THEN
            INSERT INTO job_key (task, key, seq) VALUES (j.task, j.key, j.seq) ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN answers := answers || 2; CONTINUE; END IF;
        END IF;
        DELETE FROM finished x WHERE x.seq = j.seq;
        UPDATE job SET attempts = 0, snoozes = 0, lost = 0, settled = f.token, due_at = now, ready_at = NULL,
            expires_at = now + j.expires_s, started_at = f.started_at, reason = NULL WHERE seq = j.seq;
        PERFORM place(ARRAY[j.seq]);
        INSERT INTO count_delta (queue, ready, dead, at) VALUES (j.queue, 1, -1, now);
        IF j.gates <> '' THEN
            INSERT INTO gate_delta (queue, gate, pending) SELECT j.queue, g, 1 FROM unnest(gates_of(j.gates)) g;
        END IF;
        answers := answers || 0;
        is_any := true;
    END LOOP;
    IF is_any THEN PERFORM tell_work(now); END IF;
    RETURN answers;
END $$;

-- Forget those of these jobs that are still final (a person may have had one retried meanwhile): how many.
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
        n := forget(found, now);
    ELSE
        PERFORM cancel_v1(ARRAY(SELECT j.id FROM job j WHERE j.seq = ANY (found)), fixed_at);
    END IF;
END $$;
