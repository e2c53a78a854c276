-- What the workers last said of themselves, and when. What a crash of the server takes is there again with the next beats.
CREATE UNLOGGED TABLE presence (
    worker text COLLATE "C" PRIMARY KEY,
    said_at float8 NOT NULL,
    lease_s float8 NOT NULL,
    said text NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

CREATE FUNCTION say(worker_name text, worker_lease_s float8, now float8, words text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO presence (worker, said_at, lease_s, said) VALUES (worker_name, now, worker_lease_s, words)
    ON CONFLICT (worker) DO UPDATE SET said_at = excluded.said_at, lease_s = excluded.lease_s, said = excluded.said
$$;

-- When a worker that is silent is shown no more: leases as in brokers/base.py.
CREATE FUNCTION forget_at(p presence) RETURNS float8 LANGUAGE sql AS $$ SELECT p.said_at + 10 * p.lease_s $$;

CREATE FUNCTION forget_workers(now float8) RETURNS void LANGUAGE sql AS $$
    DELETE FROM presence WHERE worker IN (
        SELECT p.worker FROM presence p WHERE forget_at(p) <= now FOR UPDATE SKIP LOCKED)
$$;

CREATE FUNCTION workers_v1(fixed_at float8) RETURNS TABLE (worker text, silent_s float8, lease_s float8, said text)
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT p.worker, now_s(fixed_at) - p.said_at, p.lease_s, p.said FROM presence p
    WHERE forget_at(p) > now_s(fixed_at)
$$;
