-- ARGV: time, name. Answers the instant, and the record: names and values in turn.

return { num(now), call('HGETALL', P .. 'gate:' .. ARGV[2]) }
