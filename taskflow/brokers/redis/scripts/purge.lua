-- ARGV: time, state, queue and task ('': any), after which number of submission, rows to look at.
-- Deletes final jobs, cancels those that wait. Answers how many, and where to go on (0: that was all).

local state, some = tonumber(ARGV[2]), tonumber(ARGV[6])
local found, ids, count, next_seq = nil, {}, 0, 0
found = call('ZRANGEBYSCORE', P .. 'jobs', '(' .. ARGV[5], '+inf', 'WITHSCORES', 'LIMIT', 0, some)
for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
if #ids == 0 then return { 0, 0 } end
if #ids == some then next_seq = found[#found] end
even_when_full()
load_rows(ids)
for i = 1, #ids do
  local id = ids[i]
  local row = rows[id]
  if row and row[STATE] == state and (ARGV[3] == '' or words_of(row[LANE])[1] == ARGV[3])
      and (ARGV[4] == '' or cjson.decode(call('HGET', P .. 'body', id):match('^[^\n]*'))[2] == ARGV[4]) then
    count = count + 1
    if state > RUNNING then
      forget(id, row)
    else
      leave_line(id, row)
      finish(id, row, CANCELLED)
    end
  end
end
flush()
return { count, next_seq }
