--------------------------- MODULE VmLedgerCreated ---------------------------
\* VmLedgerLocal from a VM that was just created: owned, its disk whole, never started.
EXTENDS VmLedgerLocal
InitCreated ==
  /\ st="Owned" /\ ep=1 /\ own=First /\ dst=First /\ prev=First /\ mig=0 /\ emig=Cold /\ ready={}
  /\ started=0 /\ lastst=0 /\ hold=First
  /\ vm=[h \in H |-> "none"] /\ mem=[h \in H |-> 0] /\ rid=[h \in H |-> 0] /\ stamp=[h \in H |-> 0]
  /\ seen=[h \in H |-> 0] /\ smig=[h \in H |-> Cold] /\ okr=[h \in H |-> FALSE]
  /\ go=[h \in H |-> FALSE] /\ lease=[h \in H |-> IF h=First THEN "ok" ELSE "no"]
  /\ whole=[h \in H |-> TRUE] /\ gate=[h \in H |-> 0] /\ disk=[h \in H |-> 0]
  /\ ack=0 /\ crashes=0 /\ fo=0 /\ lostpc=FALSE
SpecCreated == InitCreated /\ [][Next]_vars
=============================================================================
