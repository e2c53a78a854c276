-- ARGV: time, batch, rows. Its jobs are pruned as any other from now on; what is left aside the upkeep moves back.

finish_batch(ARGV[2], tonumber(ARGV[3]))
send_all()
