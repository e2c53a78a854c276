-- ARGV: time, ids (JSON). Answers the digit of each state; 0: not kept.

local ids, states = cjson.decode(ARGV[2]), {}
load_rows(ids)
for i = 1, #ids do states[i] = rows[ids[i]] and rows[ids[i]][STATE] or 0 end
return table.concat(states)
