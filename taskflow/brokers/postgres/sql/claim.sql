-- Into lines, out of lines.

-- Put jobs, one for each place of the arrays, into their lines, which are made if need be. A line is locked shared:
-- whoever closes an empty one waits for us, or was first and we make it again. Unless `makes`, a line that is missing
-- means that nothing is done: false.
CREATE FUNCTION line_up(queues integer[], kinds smallint[], priorities smallint[], lanes text[], gates text[],
    dues float8[], seqs bigint[], expires float8[], makes boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    n_wanted integer; line_ids bigint[];
BEGIN
    LOOP
        WITH wanted AS MATERIALIZED (
            SELECT DISTINCT u.* FROM unnest(queues, kinds, priorities, lanes, gates) u(queue, kind, priority, lane, gates)
        ), locked AS (
            SELECT l.id FROM wanted w JOIN line l ON l.queue = w.queue AND l.key = w.lane AND l.gates = w.gates
                AND l.priority = w.priority AND l.kind = w.kind FOR KEY SHARE OF l
        )
        SELECT (SELECT count(*) FROM wanted), ARRAY(SELECT id FROM locked) INTO n_wanted, line_ids;
        EXIT WHEN cardinality(line_ids) = n_wanted;
        IF NOT makes THEN RETURN false; END IF;
        INSERT INTO line (queue, kind, priority, key, gates)
        SELECT DISTINCT u.* FROM unnest(queues, kinds, priorities, lanes, gates) u(queue, kind, priority, lane, gates)
        ORDER BY 1, 4, 5, 3, 2 ON CONFLICT DO NOTHING;
    END LOOP;
    IF n_wanted = 1 THEN
        INSERT INTO ready (line, due_at, seq, expires_at)
        SELECT line_ids[1], u.* FROM unnest(dues, seqs, expires) u;
    ELSE
        INSERT INTO ready (line, due_at, seq, expires_at)
        SELECT l.id, u.due_at, u.seq, u.expires_at
        FROM unnest(queues, kinds, priorities, lanes, gates, dues, seqs, expires)
            u(queue, kind, priority, lane, gates, due_at, seq, expires_at)
        JOIN line l ON l.queue = u.queue AND l.key = u.lane AND l.gates = u.gates AND l.priority = u.priority
            AND l.kind = u.kind;
    END IF;
    RETURN true;
END $$;

-- The kind of a job's line, see there.
CREATE FUNCTION kind_of(gates text, lost integer) RETURNS smallint LANGUAGE sql IMMUTABLE AS
$$ SELECT ((gates <> '')::integer + CASE WHEN lost >= 2 THEN 2 ELSE 0 END)::smallint $$;

-- As `line_up`, for jobs that are kept.
CREATE FUNCTION place(seqs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    j record;
BEGIN
    SELECT array_agg(x.queue) AS queues, array_agg(kind_of(x.gates, x.lost)) AS kinds,
        array_agg(x.priority) AS priorities, array_agg(x.lane) AS lanes, array_agg(x.gates) AS gates,
        array_agg(x.due_at) AS dues, array_agg(x.seq) AS seqs, array_agg(x.expires_at) AS expires
    INTO j FROM job x WHERE x.seq = ANY (place.seqs);
    PERFORM line_up(j.queues, j.kinds, j.priorities, j.lanes, j.gates, j.dues, j.seqs, j.expires, true);
END $$;

-- Greater than every token before it: of a sequence, which no clock that is set back takes back. It is kept up with the
-- clock (4096 to a millisecond), or 16 ms behind: what a failover or a backup forgot is not given out again, or who
-- claimed before it would pass for who claims after it. One transaction at once raises it, by more than others can draw
-- meanwhile, or it might set back what another has raised. The others do not wait until that one commits: it raises as
-- soon as it has the lock.
CREATE FUNCTION new_token() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    token bigint := nextval('token_seq');
    clock bigint := floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint * 4096;
    is_ours boolean;
BEGIN
    IF token >= clock - 16 * 4096 THEN RETURN token; END IF;
    FOR n IN 1 .. 1000 LOOP
        is_ours := pg_try_advisory_xact_lock('token_seq'::regclass::oid::integer, 0);
        token := nextval('token_seq');
        EXIT WHEN token >= clock - 16 * 4096;
        IF is_ours THEN
            PERFORM setval('token_seq', clock);
            RETURN nextval('token_seq');
        END IF;
        EXIT WHEN token >= clock - 1000 * 4096;
        PERFORM pg_sleep(0.001);
    END LOOP;
    RETURN token;
END $$;

-- The worker's number. Its row stays until we commit, and its lease is renewed.
CREATE FUNCTION renew(worker_name text, lease_s float8, now float8) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    number integer; until float8;
BEGIN
    SELECT w.id, w.expires_at INTO number, until FROM worker w WHERE w.name = worker_name FOR KEY SHARE;
    IF number IS NULL THEN
        INSERT INTO worker AS w (name, expires_at) VALUES (worker_name, now + lease_s)
        ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at RETURNING w.id INTO number;
    ELSIF until < now + lease_s - least(1, lease_s / 20) OR until > now + lease_s THEN
        -- Not with every claim: a transaction that is open for long makes each old row one more to step over.
        UPDATE worker SET expires_at = now + lease_s WHERE worker.id = number;
    END IF;
    RETURN number;
END $$;

-- Scheduled jobs of these queues that are due become ready, at most `most`: how many.
CREATE FUNCTION promote(queues integer[], most integer, now float8) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    due bigint[];
BEGIN
    WITH picked AS MATERIALIZED (
        SELECT x.tid, x.seq FROM unnest(queues) a(queue) CROSS JOIN LATERAL (
            SELECT s.ctid AS tid, s.seq FROM scheduled s WHERE s.queue = a.queue AND s.due_at <= now
            ORDER BY s.due_at, s.seq LIMIT most FOR UPDATE SKIP LOCKED) x
        LIMIT most
    ), gone AS (DELETE FROM scheduled WHERE ctid = ANY (ARRAY(SELECT tid FROM picked)))
    SELECT array_agg(p.seq) INTO due FROM picked p;
    IF due IS NULL THEN RETURN 0; END IF;
    PERFORM place(due);
    INSERT INTO count_delta (queue, ready, scheduled, at)
    SELECT j.queue, count(*), -count(*), now FROM job j WHERE j.seq = ANY (due) GROUP BY j.queue;
    RETURN cardinality(due);
END $$;

-- Open the lines of the queue whose gate has opened, at most `most`: how many more it may be.
CREATE FUNCTION wake(queue_id integer, most integer, now float8) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    one text; g gate; a record; room bigint; woken bigint;
BEGIN
    FOR one IN SELECT p.gate FROM parking p WHERE p.queue = queue_id AND p.wake_at <= now
            ORDER BY p.wake_at LIMIT most FOR UPDATE SKIP LOCKED LOOP
        EXIT WHEN most <= 0;
        g := NULL;
        SELECT * INTO g FROM gate WHERE name = one;
        IF g.name IS NULL THEN
            room := most; a := NULL;
        ELSE
            a := admit(g, parent_of(one), now);
            room := least(most, a.room);
        END IF;
        woken := 0;
        IF room > 0 THEN
            UPDATE line SET stand = 1, gate = NULL, parked_at = NULL WHERE id = ANY (ARRAY(
                SELECT l.id FROM line l WHERE l.queue = queue_id AND l.gate = one AND l.stand = 2
                ORDER BY l.priority DESC, l.parked_at, l.id LIMIT room FOR NO KEY UPDATE SKIP LOCKED));
            GET DIAGNOSTICS woken = ROW_COUNT;
        END IF;
        most := most - woken;
        IF woken < room THEN
            DELETE FROM parking p WHERE p.queue = queue_id AND p.gate = one AND NOT EXISTS (
                SELECT FROM line l WHERE l.queue = queue_id AND l.gate = one AND l.stand = 2);
        ELSIF room = 0 THEN
            UPDATE parking p SET wake_at = coalesce(a.look_at, now + 300) WHERE p.queue = queue_id AND p.gate = one;
        ELSE
            UPDATE parking p SET wake_at = now WHERE p.queue = queue_id AND p.gate = one;
        END IF;
    END LOOP;
    RETURN most;
END $$;

-- Lock the gates of a line and tell how many jobs they admit. `is_ours` is false when another transaction has one of
-- them: the line is left alone then. At no room, `closed` is the first gate that has none.
CREATE FUNCTION room_of(names text[], now float8, OUT is_ours boolean, OUT room bigint, OUT closed text,
    OUT look_at float8) LANGUAGE plpgsql AS $$
DECLARE
    one text; g gate; p gate; a record;
BEGIN
    is_ours := true;
    FOREACH one IN ARRAY names LOOP
        SELECT * INTO g FROM gate WHERE name = one FOR NO KEY UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            -- To insert what another claim has inserted would be to wait for it.
            IF NOT EXISTS (SELECT FROM gate WHERE name = one)
                    AND pg_try_advisory_xact_lock('gate'::regclass::oid::integer, hashtext(one)) THEN
                INSERT INTO gate (name) VALUES (one) ON CONFLICT DO NOTHING;
                SELECT * INTO g FROM gate WHERE name = one FOR NO KEY UPDATE SKIP LOCKED;
            END IF;
            IF g.name IS NULL THEN
                is_ours := false;
                RETURN;
            END IF;
        END IF;
        p := parent_of(one);
        a := admit(g, p, now);
        IF a.room = 0 THEN
            IF p.name IS NOT NULL THEN  -- a change of the family stirs what is parked: not between look and parking
                PERFORM 1 FROM gate WHERE name = p.name FOR SHARE SKIP LOCKED;
                IF NOT FOUND THEN is_ours := false; RETURN; END IF;
                p := parent_of(one);
                a := admit(g, p, now);
            END IF;
            IF a.room = 0 THEN
                room := 0; closed := one; look_at := a.look_at;
                RETURN;
            END IF;
        END IF;
        room := least(room, a.room);
    END LOOP;
END $$;

-- These lines answered short: those without a ready job are no lines. One that a submitter holds stays.
CREATE FUNCTION close_lines(short bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    locked bigint[];
BEGIN
    locked := ARRAY(SELECT l.id FROM line l WHERE l.id = ANY (short) ORDER BY l.id FOR UPDATE SKIP LOCKED);
    DELETE FROM line l WHERE l.id = ANY (locked) AND NOT EXISTS (SELECT FROM ready r WHERE r.line = l.id);
END $$;
