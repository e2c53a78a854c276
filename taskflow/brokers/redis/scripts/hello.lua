-- Asks nothing but what every script asks before it begins, and here of all of them: whether the user may. Answers the
-- time.

return num(now)
