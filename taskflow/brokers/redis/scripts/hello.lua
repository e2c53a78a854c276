-- What a user must be allowed, before it matters: keys and channels of the namespace, from within scripts.
-- Answers the time.

call('EXISTS', P .. 'numbers')
call('PUBLISH', P .. 'work', '')
return num(now)
