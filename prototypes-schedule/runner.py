import sys; sys.path.insert(0,"/tmp/proto")
from search import *
from dataclasses import replace
from reelquant.runtime.engines.options import EngineOptions
from reelquant.runtime.pipeline import Pipeline
from reelquant.quant.calibration.data import CalibrationData
from reelquant.runtime.sampling.conditioning import condition
from reelquant.runtime.monitor import Monitor
class Runner:
    def __init__(self, task, sched, g, clips, threads=1, bundle=None):
        self.task,self.sched,self.g=task,sched,g
        b=Bundle.open(Path(bundle or f"/work/main/build/tests/{task}-fp32"))
        self.p=p=Pipeline(b, EngineOptions("openvino",threads=threads))
        reqs=CalibrationData.load("demo").requests(task, max(clips)+1, 0, 50)
        self.conds=[]
        m=Monitor()
        for c in clips:
            r=p.resolve(replace(reqs[c],scheduler=sched,guidance=float(g)))
            text=p._encode_text([r.request.negative_prompt,r.request.prompt],m)
            self.conds.append((condition(r,text,b,p._networks,m),r))
        self.s=p._networks.transformer(m)
        X,V,F=load(task,sched,g); self.F=F[clips]; self.X0=X[clips,0]
        _,self.ts,self.L,self.N=levels(task,sched)
        self.clips=clips; self.forwards=0
        self.frames=None
        self.fixed=self.conds[0][0].fixed
    def velocity(self,x,t,half="both"):
        """x [n,...] -> u,c each [n,...]"""
        n=len(x); us,cs=[],[]
        for k,(c,_) in enumerate(self.conds):
            rows=[0,1] if half=="both" else [1]
            feeds={"text":c.text[rows],"latents":np.repeat(x[k][None],len(rows),0),"timestep":np.full(len(rows),t,np.int64),**self.fixed}
            if c.image_latents is not None: feeds["image_latents"]=np.repeat(c.image_latents[None],len(rows),0)
            v=np.array(self.s.run({k2:feeds[k2] for k2 in self.s.inputs})["velocity"])
            cs.append(v[-1]); us.append(v[0])
        return np.stack(us),np.stack(cs)
    def decode(self,x):
        return np.stack([self.p.decode(a[-self.p.model.geometry.latent_frames(self.conds[0][1].size):]) for a in x])
    def score(self,x):
        rl=[np.linalg.norm(a-b)/np.linalg.norm(b) for a,b in zip(x,self.F)]
        if self.frames is None: self.frames=self.decode(self.F)
        fr=self.decode(x)
        ps=[10*np.log10(255**2/max(np.mean((a.astype(float)-b)**2),1e-9)) for a,b in zip(fr,self.frames)]
        return np.mean(rl),np.mean(ps),np.min(ps),ps
    def run_ddim(self, seq, forecast):
        """seq: computed steps; forecast(i, nodes g list [(step, g)], x [n..]) -> g"""
        x=self.X0.copy().astype(np.float32); nodes=[]
        keep=np.sqrt((1-self.N)/(1-self.L)); gain=np.sqrt(self.N)-np.sqrt(self.L)*keep
        for i,t in enumerate(self.ts):
            if i in seq:
                u,c=self.velocity(x,int(t))
                v=u+np.float32(self.g)*(c-u)
                g=np.float32(np.sqrt(self.L[i]))*x-np.float32(np.sqrt(1-self.L[i]))*v
                nodes.append((i,g))
            else:
                g=forecast(i,nodes,x)
            x=np.float32(keep[i])*x+np.float32(gain[i])*g
        return x
def linear_phi(L):
    phi=np.arccos(np.sqrt(np.clip(L,0,1)))
    def f(i,nodes,x):
        if len(nodes)<2: return nodes[-1][1]
        (p,gp),(q,gq)=nodes[-2:]
        r=(phi[i]-phi[q])/(phi[q]-phi[p])
        return gq+np.float32(r)*(gq-gp)
    return f
def fitted(coef):
    def f(i,nodes,x):
        p=nodes[-2][0] if len(nodes)>1 else -1; q=nodes[-1][0]
        co=coef[p,q,i]; ys=[nodes[-1][1],x] if p<0 else [nodes[-2][1],nodes[-1][1],x]
        return sum(np.float32(a)*y for a,y in zip(co,ys))
    return f
