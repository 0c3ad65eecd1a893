"""Full trajectories: per clip and step: x (before step), v_u, v_c; and injected noise."""
import sys, numpy as np, time
from pathlib import Path
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.runtime.request import Request
from reelquant.quant.calibration.data import CalibrationData
from reelquant.quant.calibration.watch import sample_watched
from dataclasses import replace
task, sched, guidance, n = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
b=Bundle.open(Path(f"/work/main/build/tests/{task}-fp32"))
p=Pipeline(b, EngineOptions("openvino"))
data=CalibrationData.load("demo")
reqs=data.requests(task, n, 0, 50)
from reelquant.runtime.engines.registry import open_onnx
s=p.engine.open_component(b,"transformer",p.options,"main")["main"]
rec={}
def see(clip, feeds, results):
    rec.setdefault(clip,[]).append((np.array(feeds["latents"][0]), np.array(results["velocity"])))
from reelquant.runtime.progress import SILENT
t=time.time()
reqs=[replace(r, scheduler=sched, guidance=guidance) for r in reqs]
finals=sample_watched(p,s,reqs,see,SILENT,"x")
X=np.stack([[a for a,_ in rec[c]] for c in range(n)]); V=np.stack([[v for _,v in rec[c]] for c in range(n)])
np.savez(f"/tmp/proto/{task}-{sched}-{guidance:g}.npz", X=X, V=V, F=np.stack(finals))
print(task,sched,X.shape,V.shape,time.time()-t, [r.seed for r in reqs][:3], [r.prompt for r in reqs][:2])
