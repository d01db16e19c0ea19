-- A tenant's cap of running jobs was raised or taken away: what it holds back may be chosen again.
-- ARGV: now, tenant, bell (see take_bell)
take_bell(3)
unhold(ARGV[2])
return 1
