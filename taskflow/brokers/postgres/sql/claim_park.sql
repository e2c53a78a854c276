-- The line leaves the open ones and waits at `gate_name`, whose row is locked: no settle comes between.
CREATE FUNCTION park(line_id bigint, queue_id integer, gate_name text, look_at float8, now float8) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM line l WHERE l.id = line_id FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN RETURN; END IF;
    UPDATE line SET stand = 2, gate = gate_name, parked_at = now WHERE id = line_id;
    INSERT INTO parking AS p (queue, gate, wake_at) VALUES (queue_id, gate_name, look_at)
    ON CONFLICT (queue, gate) DO UPDATE SET wake_at = excluded.wake_at WHERE excluded.wake_at < p.wake_at;
END $$;
