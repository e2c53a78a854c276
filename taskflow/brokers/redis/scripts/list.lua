-- ARGV: time, ids (JSON), or else false and: state (0: any), queue and task ('': any), limit, below which number of
-- submission (0: from the newest), rows to look at. Answers where to go on (0: that was all) and, for each job, its row
-- (JSON), body, progress ('': none), and errors. Newest first.

local ids, state, next_seq = cjson.decode(ARGV[2]), tonumber(ARGV[3]), 0
local limit = tonumber(ARGV[6])
if not ids then
  ids = {}
  local below = ARGV[7] == '0' and '+inf' or '(' .. ARGV[7]
  local some = call('ZREVRANGEBYSCORE', P .. 'jobs', below, '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[8])
  for i = 1, #some, 2 do ids[#ids + 1] = some[i] end
  if #ids == tonumber(ARGV[8]) then next_seq = some[#some] end
end
if #ids == 0 then return { 0 } end
load_rows(ids)

local function text(value)
  if not value then return 'null' end
  if value == true then return 'true' end
  return type(value) == 'number' and num(value) or cjson.encode(value)
end

local answer = { next_seq }
for i = 1, #ids do
  local id = ids[i]
  local row = rows[id]
  if row and (state == 0 or row[STATE] == state) and (ARGV[4] == '' or words_of(row[LANE])[1] == ARGV[4]) then
    local body = call('HGET', P .. 'body', id)
    if ARGV[5] == '' or cjson.decode(body:match('^[^\n]*'))[2] == ARGV[5] then
      local fields = {}
      for n = 1, FIELDS do fields[n] = text(row[n]) end
      local n = #answer
      answer[n + 1] = '[' .. table.concat(fields, ',') .. ']'
      answer[n + 2] = body
      answer[n + 3] = row[PROGRESS] and call('HGET', P .. 'progress', id) or ''
      answer[n + 4] = row[ERRORS] and call('LRANGE', P .. 'errors:' .. id, 0, -1) or {}
      limit = limit - 1
      if limit <= 0 then
        answer[1] = 0
        break
      end
    end
  end
end
return answer
