-- Gates: `core.gate` and `core.bucket`, where the rows are.

-- The server's clock, in seconds since 1970; a test's own, where that is given.
CREATE FUNCTION now_s(fixed_at float8) RETURNS float8 LANGUAGE sql VOLATILE AS
$$ SELECT coalesce(fixed_at, extract(epoch FROM clock_timestamp())::float8) $$;

CREATE FUNCTION gates_of(gates text) RETURNS text[] LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN gates = '' THEN '{}'::text[] ELSE ARRAY(SELECT json_array_elements_text(gates::json)) END $$;

CREATE FUNCTION limit_of(g gate, p gate) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT least((g).ramp, coalesce((g).max_live_override, (p).max_live_override, (g).max_live, (p).max_live)) $$;

CREATE FUNCTION rate_of(g gate, p gate, OUT interval_s float8, OUT burst bigint) LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF g.rate_override_interval_s IS NOT NULL THEN
        interval_s := g.rate_override_interval_s; burst := g.rate_override_burst;
    ELSIF p.rate_override_interval_s IS NOT NULL THEN
        interval_s := p.rate_override_interval_s; burst := p.rate_override_burst;
    ELSIF g.rate_interval_s IS NOT NULL THEN
        interval_s := g.rate_interval_s; burst := g.rate_burst;
    ELSE
        interval_s := p.rate_interval_s; burst := p.rate_burst;
    END IF;
END $$;

-- A `tat` that owes more than the burst does not count (`core.bucket._counted`).
CREATE FUNCTION counted(tat float8, now float8, interval_s float8, burst bigint) RETURNS float8
LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN now < tat AND tat <= now + interval_s * burst + 10.0 THEN tat ELSE now END $$;

-- `room` NULL: no bound. `look_at` NULL: only a settle or a change of the gate can make room.
CREATE FUNCTION admit(g gate, p gate, now float8, OUT room bigint, OUT look_at float8) LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    held float8 := greatest(g.held_until, p.held_until);
    most bigint := limit_of(g, p);
    rate record;
    owed float8;
    tokens bigint;
BEGIN
    IF held > now THEN
        room := 0; look_at := held;
        RETURN;
    END IF;
    IF most IS NOT NULL THEN
        room := greatest(0, most - g.live);
        IF room = 0 THEN RETURN; END IF;
    END IF;
    rate := rate_of(g, p);
    IF rate.interval_s IS NULL THEN RETURN; END IF;
    owed := counted(g.tat, now, rate.interval_s, rate.burst);
    tokens := greatest(0, rate.burst - ceil((owed - now - 1e-6) / rate.interval_s)::bigint);
    IF tokens = 0 THEN
        room := 0;
        look_at := greatest(now, owed - rate.interval_s * (rate.burst - 1));
    ELSE
        room := least(room, tokens);
    END IF;
END $$;

CREATE FUNCTION parent_of(gate_name text) RETURNS gate LANGUAGE sql STABLE AS
$$ SELECT g FROM gate g WHERE name = split_part(gate_name, '/', 1) AND name <> gate_name $$;

-- `taken` jobs were claimed through the gate. Its row is locked by the caller.
CREATE FUNCTION take_room(gate_name text, taken bigint, now float8) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    g gate; p gate; rate record;
BEGIN
    SELECT * INTO g FROM gate WHERE name = gate_name;
    p := parent_of(gate_name);
    rate := rate_of(g, p);
    UPDATE gate SET live = live + taken, tat = CASE WHEN rate.interval_s IS NULL THEN tat
        ELSE counted(tat, now, rate.interval_s, rate.burst) + rate.interval_s * taken END
    WHERE name = gate_name;
END $$;

-- Claims of these gates ended: of each `ended`, of which `unused` never started. Lines that wait
-- there may go on. Whether any does.
CREATE FUNCTION give_room(names text[], ended bigint[], unused bigint[], now float8) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    one record; g gate; p gate; rate record; is_any boolean := false;
BEGIN
    FOR one IN SELECT name, sum(e)::bigint AS ended, sum(u)::bigint AS unused FROM unnest(names, ended, unused) t(name, e, u)
            GROUP BY name ORDER BY name COLLATE "C" LOOP
        SELECT * INTO g FROM gate WHERE name = one.name FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        p := parent_of(one.name);
        rate := rate_of(g, p);
        UPDATE gate SET live = greatest(0, live - one.ended),
            tat = CASE WHEN rate.interval_s IS NULL THEN tat ELSE tat - rate.interval_s * one.unused END
        WHERE name = one.name;
        is_any := stir(one.name, now) OR is_any;
    END LOOP;
    RETURN is_any;
END $$;

-- The gates of ended claims whose room was not given back yet, once for each; `names` NULL: of any gate. The caller gives it.
CREATE FUNCTION take_owed(names text[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    found text[];
BEGIN
    WITH gone AS (DELETE FROM owed_room WHERE ctid = ANY (ARRAY(SELECT o.ctid FROM owed_room o
        WHERE names IS NULL OR o.gate = ANY (names) LIMIT 1000 FOR UPDATE SKIP LOCKED)) RETURNING gate)
    SELECT coalesce(array_agg(gate), '{}') INTO found FROM gone;
    RETURN found;
END $$;

-- The gate may have opened: the next claim from each queue with lines waiting at it looks.
CREATE FUNCTION stir(gate_name text, now float8) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    -- Locked before it is looked at: a claim that saw the gate closed may be about to say "not before five minutes".
    PERFORM 1 FROM parking WHERE parking.gate = gate_name ORDER BY queue FOR UPDATE;
    UPDATE parking SET wake_at = now WHERE parking.gate = gate_name AND wake_at > now;
    RETURN FOUND;
END $$;
