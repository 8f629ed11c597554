------------------------------ MODULE LedgerTrace ------------------------------
\* Is what a ledger has recorded of a VM a behaviour of VmLedgerLocal? A trace holds the ledger's own
\* variables after each entry that changed them; what the hosts did between two entries is found by
\* TLC. A trace is refused when no behaviour of the specification leads to its next entry.
EXTENDS VmLedgerCreated, Sequences, TLC
CONSTANT Traces
VARIABLES trace, at   \* which trace, and how many of its lines are explained
traced == <<trace, at>>
\* Counters that no line tells about would only multiply the states.
Seen == <<traced, L, vm, rid, stamp, seen, smig, okr, go, lease, whole, gate>>

Lines == Traces[trace]
Next1 == Lines[at+1]
Told(n) == TLCSet(trace, n) /\ PrintT(<<"explained", trace, n>>)
InitTrace == /\ trace \in DOMAIN Traces /\ at = 1 /\ Told(1)
             /\ InitCreated

\* The entry that the ledger has written.
Agrees(l) == /\ st'=l.st /\ ep'=l.ep /\ own'=l.own /\ started'=l.started /\ lastst'=l.lastst /\ hold'=l.hold
             /\ (l.st="Preparing" => dst'=l.dst /\ (mig' \in ready') = l.ready)
             /\ (l.st="Unsettled" => prev'=l.prev)
Step(kind) == CASE kind="prepare"  -> \E h \in H: Prepare(h)
                [] kind="ready"    -> \E h \in H: SendReady(h)
                [] kind="commit"   -> Commit
                [] kind="abort"    -> Abort
                [] kind="started"  -> \E h \in H: RecStart(h)
                [] kind="settle"   -> Settle
                [] kind="revert"   -> Revert
                [] kind="declined" -> \E h \in H: Decline(h)
                [] kind="failover" -> \E h \in H: Failover(h)
                [] kind="restart"  -> Failover(own) \* with its reaped VMM as evidence
Entry == /\ Step(Next1.kind) /\ Agrees(Next1) /\ at'=at+1 /\ UNCHANGED trace
         /\ (at' > TLCGet(trace) => Told(at'))

\* What hosts may have done meanwhile: only what the next entry can need, so that there is little to
\* search. Leaving out steps can refuse a good trace and never explain a bad one.
Next_(kinds) == Next1.kind \in kinds
Given == {"failover", "restart"}
Quiet == \/ Fill
         \/ Next_({"ready"}) /\ (Transfer(TRUE) \/ (PC /\ Transfer(FALSE)))
         \/ \E h \in H: \/ Learn(h) \/ Renew(h) \/ StartImg(h) \/ StartCold(h)
                        \/ (RecStart(h) /\ UNCHANGED L)
                        \/ (Next_({"ready"}) /\ Pause(h))
                        \/ (Next_({"prepare"}) /\ GC(h))
                        \/ (Next_(Given) /\ own=h /\ (SelfFence(h) \/ LeaseExpire(h)))
                        \/ (Next_(Given \cup {"started", "prepare"}) /\ vm[h]#"none" /\ Crash(h))
NextTrace == /\ at < Len(Lines)
             /\ Entry \/ (Quiet /\ UNCHANGED traced)
SpecTrace == InitTrace /\ [][NextTrace]_<<vars, traced>>
=============================================================================
