-- Jobs to a worker: strict priority, then lines in turn, each turn a quota, within what the gates admit. Whose turn it
-- is, and below which mark a line is known to be empty, is kept by whoever asks.
CREATE FUNCTION claim_v1(
    worker_name text, queues text[], most integer, gated integer, suspects integer, lease_s float8,
    cursor_queues text[], cursor_priorities integer[], cursor_lines bigint[],
    mark_lines bigint[], mark_dues float8[], mark_seqs bigint[],
    quota_least integer, wakes integer, promotes integer, parks integer, fixed_at float8
) RETURNS TABLE (
    at float8, is_whole boolean, line bigint, due_at float8, seq bigint, token bigint, job_id text, task text, queue text, payload bytea, lane text,
    gates text, priority smallint, attempts integer, snoozes integer, lost integer, waited_s float8, age_s float8,
    expires_in_s float8, expire_reason text, checkpoint bytea, recoveries text
) LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now float8 := now_s(fixed_at);
    worker_id integer := renew(worker_name, lease_s, now);
    queue_ids integer[]; queue_names text[]; queue_id integer; queue_name text;
    claim_token bigint;
    kinds smallint[];
    top smallint; turn bigint; quota integer; n_ring integer; i integer;
    ring bigint[]; ring_gates text[]; ring_kinds smallint[];
    got_lines bigint[]; got_dues float8[]; got_seqs bigint[];
    all_lines bigint[] := '{}'; all_dues float8[] := '{}'; all_seqs bigint[] := '{}';
    n_got integer; n_queue integer; wanted integer;
    short bigint[]; closing bigint[] := '{}'; skipped bigint[] := '{}';
    names text[]; r record; is_parker boolean;
    is_whole_look boolean := cardinality(mark_lines) = 0;
BEGIN
    SELECT array_agg(y.id), array_agg(y.name) INTO queue_ids, queue_names FROM (
        SELECT x.id, x.name FROM unnest(queues) WITH ORDINALITY a(name, n) JOIN queue x ON x.name = a.name
        WHERE NOT x.is_paused ORDER BY a.n) y;
    IF promote(queue_ids, promotes, now) > 0 THEN
        is_whole_look := true;  -- they may be due since long
        mark_lines := '{}'; mark_dues := '{}'; mark_seqs := '{}';
    END IF;
    -- From here on this waits for nobody: see the order of locks in `tables.sql`.
    FOR number IN 1 .. coalesce(cardinality(queue_ids), 0) LOOP
        EXIT WHEN most <= 0;
        queue_id := queue_ids[number]; queue_name := queue_names[number];
        n_queue := 0;
        is_parker := NULL;
        IF gated > 0 AND EXISTS (SELECT FROM parking p WHERE p.queue = queue_id AND p.wake_at <= now) THEN
            is_parker := pg_try_advisory_xact_lock('parking'::regclass::oid::integer, queue_id);
            IF is_parker THEN wakes := wake(queue_id, wakes, now); END IF;
        END IF;
        WHILE most > 0 LOOP
            kinds := CASE WHEN gated > 0 AND parks > 0 THEN '{0,1}'::smallint[] ELSE '{0}' END;
            IF suspects > 0 THEN
                kinds := kinds || CASE WHEN gated > 0 AND parks > 0 THEN '{2,3}'::smallint[] ELSE '{2}' END;
            END IF;
            SELECT max((SELECT l.priority FROM line l WHERE l.queue = queue_id AND l.kind = k AND l.stand = 1
                    AND l.id <> ALL (skipped) ORDER BY l.priority DESC LIMIT 1))
            INTO top FROM unnest(kinds) k;
            EXIT WHEN top IS NULL;
            turn := coalesce((SELECT c.line FROM unnest(cursor_queues, cursor_priorities, cursor_lines)
                WITH ORDINALITY c(queue, priority, line, n) WHERE c.queue = queue_name AND c.priority = top
                ORDER BY c.n LIMIT 1), 0);
            n_ring := ceil(most::float8 / quota_least);
            SELECT array_agg(x.id), array_agg(x.gates), array_agg(x.kind) INTO ring, ring_gates, ring_kinds FROM (
                SELECT y.id, y.gates, y.kind FROM (
                    (SELECT l.* FROM unnest(kinds) k CROSS JOIN LATERAL (
                        SELECT l.id, l.gates, l.kind, 0 AS lap FROM line l WHERE l.queue = queue_id AND l.kind = k
                        AND l.priority = top AND l.stand = 1 AND l.id > turn AND l.id <> ALL (skipped)
                        ORDER BY l.id LIMIT n_ring) l)
                    UNION ALL
                    (SELECT l.* FROM unnest(kinds) k CROSS JOIN LATERAL (
                        SELECT l.id, l.gates, l.kind, 1 AS lap FROM line l WHERE l.queue = queue_id AND l.kind = k
                        AND l.priority = top AND l.stand = 1 AND l.id <= turn AND l.id <> ALL (skipped)
                        ORDER BY l.id LIMIT n_ring) l)) y
                ORDER BY y.lap, y.id LIMIT n_ring) x;
            EXIT WHEN ring IS NULL;
            quota := greatest(quota_least, ceil(most::float8 / cardinality(ring)));
            short := '{}';
            IF 0 = ALL (ring_kinds) THEN
                WITH picked AS MATERIALIZED (
                    SELECT a.line, x.due_at, x.seq, x.tid
                    FROM unnest(ring) a(line)
                    LEFT JOIN unnest(mark_lines, mark_dues, mark_seqs) m(line, due_at, seq) ON m.line = a.line
                    CROSS JOIN LATERAL (
                        SELECT y.ctid AS tid, y.due_at, y.seq FROM ready y WHERE y.line = a.line
                        AND (y.due_at, y.seq) > (coalesce(m.due_at, '-infinity'), coalesce(m.seq, 0))
                        ORDER BY y.due_at, y.seq LIMIT quota FOR UPDATE SKIP LOCKED) x
                    LIMIT most
                ), gone AS (DELETE FROM ready WHERE ctid = ANY (ARRAY(SELECT tid FROM picked)))
                SELECT array_agg(p.line), array_agg(p.due_at), array_agg(p.seq) INTO got_lines, got_dues, got_seqs
                FROM picked p;
                n_got := coalesce(cardinality(got_seqs), 0);
                most := most - n_got;
                IF n_got > 0 THEN
                    all_lines := all_lines || got_lines; all_dues := all_dues || got_dues;
                    all_seqs := all_seqs || got_seqs;
                    n_queue := n_queue + n_got;
                    turn := got_lines[n_got];
                END IF;
                IF cardinality(ring) = 1 THEN
                    short := CASE WHEN n_got < quota THEN ring ELSE '{}' END;
                ELSIF n_got < quota * cardinality(ring) THEN
                    short := ARRAY(SELECT a.line FROM unnest(ring) WITH ORDINALITY a(line, n) WHERE
                        (most > 0 OR a.n < array_position(ring, got_lines[n_got]))
                        AND (SELECT count(*) FROM unnest(got_lines) b WHERE b = a.line) < quota);
                END IF;
            ELSE
                FOR i IN 1 .. cardinality(ring) LOOP
                    EXIT WHEN most <= 0;
                    wanted := least(quota, most);
                    IF ring_kinds[i] & 2 > 0 THEN
                        CONTINUE WHEN suspects <= 0;
                        wanted := least(wanted, suspects);
                    END IF;
                    IF ring_kinds[i] & 1 > 0 THEN
                        CONTINUE WHEN gated <= 0 OR parks <= 0;
                        names := gates_of(ring_gates[i]);
                        r := room_of(names, now);
                        IF NOT r.is_ours THEN
                            skipped := skipped || ring[i];
                            CONTINUE;
                        END IF;
                        IF r.room = 0 THEN
                            IF is_parker IS NULL THEN
                                is_parker := pg_try_advisory_xact_lock('parking'::regclass::oid::integer, queue_id);
                            END IF;
                            IF is_parker THEN
                                PERFORM park(ring[i], queue_id, r.closed, coalesce(r.look_at, now + 300), now);
                            END IF;
                            skipped := skipped || ring[i];
                            parks := parks - 1;
                            CONTINUE;
                        END IF;
                        wanted := least(wanted, gated, r.room);
                    END IF;
                    WITH picked AS MATERIALIZED (
                        SELECT y.ctid AS tid, y.due_at, y.seq FROM ready y WHERE y.line = ring[i]
                        AND (y.due_at, y.seq) > (coalesce((SELECT m.due_at FROM unnest(mark_lines, mark_dues)
                            m(line, due_at) WHERE m.line = ring[i]), '-infinity'), 0)
                        ORDER BY y.due_at, y.seq LIMIT wanted FOR UPDATE SKIP LOCKED
                    ), gone AS (DELETE FROM ready WHERE ctid = ANY (ARRAY(SELECT tid FROM picked)))
                    SELECT array_agg(ring[i]), array_agg(p.due_at), array_agg(p.seq)
                    INTO got_lines, got_dues, got_seqs FROM picked p;
                    n_got := coalesce(cardinality(got_seqs), 0);
                    IF n_got < wanted THEN short := short || ring[i]; END IF;
                    turn := ring[i];
                    CONTINUE WHEN n_got = 0;
                    IF ring_kinds[i] & 1 > 0 THEN
                        gated := gated - n_got;
                        PERFORM take_room(g, n_got, now) FROM unnest(names) g;
                        INSERT INTO gate_delta (queue, gate, pending) SELECT queue_id, g, -n_got FROM unnest(names) g;
                    END IF;
                    IF ring_kinds[i] & 2 > 0 THEN suspects := suspects - n_got; END IF;
                    most := most - n_got;
                    all_lines := all_lines || got_lines; all_dues := all_dues || got_dues;
                    all_seqs := all_seqs || got_seqs;
                    n_queue := n_queue + n_got;
                END LOOP;
            END IF;
            -- The turn goes on from here within this claim too; the last word is the one that counts.
            cursor_queues := queue_name || cursor_queues; cursor_priorities := top::integer || cursor_priorities;
            cursor_lines := turn || cursor_lines;
            closing := closing || short;
            skipped := skipped || short;
        END LOOP;
        IF n_queue > 0 THEN
            INSERT INTO count_delta (queue, ready, running, at) VALUES (queue_id, -n_queue, n_queue, now);
        END IF;
    END LOOP;
    IF cardinality(closing) > 0 THEN PERFORM close_lines(closing); END IF;
    IF cardinality(all_seqs) = 0 THEN RETURN; END IF;
    claim_token := new_token();  -- now that the rows are ours: a later claim of them has a greater one
    INSERT INTO running (seq, token, worker, started_at) SELECT s, claim_token, worker_id, now FROM unnest(all_seqs) s;
    RETURN QUERY SELECT now, is_whole_look, a.line, a.due_at, a.seq, claim_token, j.id, j.task, q.name, j.payload, j.lane, j.gates,
        j.priority, j.attempts, j.snoozes, j.lost, greatest(0, now - coalesce(j.ready_at, j.due_at)),
        greatest(0, now - (j.expires_at - j.expires_s)), j.expires_at - now, j.expire_reason, n.checkpoint,
        CASE WHEN j.gates <> '' THEN (
            SELECT json_agg(json_build_array(g.name, g.era, g.ramp, g.failed) ORDER BY x.n)::text
            FROM unnest(gates_of(j.gates)) WITH ORDINALITY x(name, n) JOIN gate g ON g.name = x.name WHERE g.era > 0) END
    FROM unnest(all_lines, all_dues, all_seqs) WITH ORDINALITY a(line, due_at, seq, n)
    JOIN job j ON j.seq = a.seq JOIN queue q ON q.id = j.queue LEFT JOIN note n ON n.seq = a.seq ORDER BY a.n;
END $$;
