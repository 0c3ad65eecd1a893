import sys,time
from pathlib import Path
import reelquant.quant.schedule.make as M, json
print(M.__file__, flush=True)
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.quant.calibration.data import CalibrationData
from dataclasses import replace
import tempfile
task,sched,order,prompts,counts=sys.argv[1],sys.argv[2],int(sys.argv[3]),int(sys.argv[4]),[int(k) for k in sys.argv[5].split(",")]
b=Bundle.open(Path(f"/work/main/build/tests/{task}-fp32"))
p=Pipeline(b,EngineOptions("openvino"))
data=CalibrationData.load("demo")
plan=M.SchedulePlan("demo",prompts,6,order=order,scheduler=sched)
reqs=[replace(r,scheduler=sched) for r in [*data.requests(task,prompts,0,50),*data.last(6,task).requests(task,6,100,50)]]
d=Path(tempfile.mkdtemp())
t=time.time(); tr=M.record(p,reqs,d); print("record",time.time()-t,flush=True)
seen,unseen=tr[:prompts],tr[prompts:]
t=time.time(); costs=M.stretch_costs(seen); print("costs",time.time()-t,flush=True)
whole=[p.decode(M._cut(p,e,e.final)) for e in unseen]
for k in counts:
    kinds=M.best_kinds(costs,k); t=time.time(); s=M.fitted(p,b,"x",seen,kinds,plan); 
    free=replace(s,bounds=tuple(1e9 for _ in s.bounds))
    print(task,sched,"order",order,k,kinds,M._measured(p,free,unseen,whole).measured,"\n   guarded",M._measured(p,s,unseen,whole).measured,round(time.time()-t),flush=True)
import shutil; shutil.rmtree(d)
