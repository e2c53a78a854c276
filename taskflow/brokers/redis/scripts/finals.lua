-- ARGV: time, ids (JSON), for how many seconds the others are waited for (0: not at all).
-- Answers: what is known of each (0 missing, 1 not final, or [state, result kept, bytes of the result or -1]), the
-- results, the last errors (JSON or ''). The end of those that are not final is told on the channel `ends`.

local ids, wait = cjson.decode(ARGV[2]), tonumber(ARGV[3])
load_rows(ids)
local known, results, errors = {}, {}, {}
for i = 1, #ids do
  local id = ids[i]
  local row = rows[id]
  errors[i] = ''
  if not row then
    known[i] = '0'
  elseif row[STATE] <= RUNNING then
    known[i] = '1'
    if wait > 0 then
      even_when_full()
      add('HSET', P .. 'awaited', id, 1)
    end
  else
    local size = -1
    if row[RESULT] == 1 then
      local result = call('HGET', P .. 'results', id)
      results[#results + 1] = result
      size = #result
    end
    if row[ERRORS] then errors[i] = call('LINDEX', P .. 'errors:' .. id, -1) or '' end
    known[i] = format('[%d,%d,%d]', row[STATE], row[RESULT] == 2 and 0 or 1, size)
  end
end
send_all()
if wait > 0 then
  local ms = ceil(min(wait, 86400) * 1000) + 1000
  if call('PTTL', P .. 'awaited') < ms then call('PEXPIRE', P .. 'awaited', ms) end
end
return { '[' .. table.concat(known, ',') .. ']', table.concat(results), errors }
