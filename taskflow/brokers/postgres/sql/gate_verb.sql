-- The gate of this name, which is made if need be, and the server's clock: what a change is computed from.
CREATE FUNCTION gate_v1(gate_name text, fixed_at float8, OUT g gate, OUT now float8) LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO gate (name) SELECT gate_name WHERE NOT EXISTS (SELECT FROM gate WHERE name = gate_name)
    ON CONFLICT DO NOTHING;
    SELECT * INTO g FROM gate WHERE name = gate_name;
    now := now_s(fixed_at);
END $$;

-- Store what a change computed, if the gate is still what it was computed from. `what`: 0 hold and recovery, 1 what code
-- says, 2 an operator's limit, 3 an operator's rate. Whether it was stored.
CREATE FUNCTION put_gate_v1(what integer, old_generation bigint, old_era bigint, old_word bigint, changed gate,
    fixed_at float8) RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    g gate; now float8 := now_s(fixed_at); is_stirred boolean;
BEGIN
    SELECT * INTO g FROM gate x WHERE x.name = changed.name FOR NO KEY UPDATE;
    IF NOT FOUND OR (what = 0 AND (g.generation, g.era, g.word) <> (old_generation, old_era, old_word)) THEN
        RETURN false;
    END IF;
    IF what = 0 THEN
        UPDATE gate SET generation = changed.generation, held_until = changed.held_until, reason = changed.reason,
            era = changed.era, ramp = changed.ramp, good = changed.good, bad = changed.bad, failed = changed.failed,
            word = changed.word WHERE name = changed.name;
    ELSIF what = 1 THEN
        UPDATE gate SET max_live = changed.max_live, rate_interval_s = changed.rate_interval_s,
            rate_burst = changed.rate_burst WHERE name = changed.name;
    ELSIF what = 2 THEN
        UPDATE gate SET max_live_override = changed.max_live_override WHERE name = changed.name;
    ELSE
        UPDATE gate SET rate_override_interval_s = changed.rate_override_interval_s,
            rate_override_burst = changed.rate_override_burst WHERE name = changed.name;
    END IF;
    is_stirred := stir(changed.name, now);
    IF strpos(changed.name, '/') = 0 THEN
        PERFORM 1 FROM parking WHERE gate >= changed.name || '/' AND gate < changed.name || '0'
            ORDER BY gate, queue FOR UPDATE;
        UPDATE parking SET wake_at = now WHERE gate >= changed.name || '/' AND gate < changed.name || '0'
            AND wake_at > now;
        is_stirred := FOUND OR is_stirred;
    END IF;
    IF is_stirred THEN PERFORM tell_work(now); END IF;
    RETURN true;
END $$;
