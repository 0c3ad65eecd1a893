import numpy as np, sys
from reelquant.runtime.bundle import Bundle
from reelquant.runtime.models import model_of
from pathlib import Path
def load(task, sched, g):
    z=np.load(f"/tmp/proto/{task}-{sched}-{g:g}.npz"); return z["X"],z["V"],z["F"]
def levels(task, sched, steps=50):
    b=Bundle.open(Path(f"/work/main/build/tests/{task}-fp32")); s=model_of(b.manifest).scheduler(sched)
    ts=s.timesteps(steps); stride=s.config.num_train_timesteps//steps
    L=[float(s.levels[t]) for t in ts]; N=[float(s.levels[t-stride]) if t-stride>=0 else 1.0 for t in ts]
    return s, ts, np.array(L), np.array(N)
def ddim_weights(L,N):
    keep=np.sqrt((1-N)/(1-L)); gain=np.sqrt(N)-np.sqrt(L)*keep
    after=np.concatenate([np.cumprod(keep[::-1])[::-1][1:],[1.0]])
    return gain*after, keep, gain
class Data:
    def __init__(self, task, sched, g, cal, ridge=1e-5):
        X,V,F=load(task,sched,g); self.s=g
        _,self.ts,L,N=levels(task,sched); self.L,self.N=L,N
        a=np.sqrt(L)[None,:,None]; o=np.sqrt(1-L)[None,:,None]
        n,T=X.shape[:2]
        Xf=X.reshape(n,T,-1); Vf=V.reshape(n,T,2,-1)
        u=a*Xf-o*Vf[:,:,0]; c=a*Xf-o*Vf[:,:,1]
        self.c,self.d,self.x=c[:cal],(c-u)[:cal],Xf[:cal]
        self.g=c[:cal]+(g-1)*(c-u)[:cal]
        self.T=T
def gram(A): # A [n,K,D]
    n,K,D=A.shape; M=A.transpose(1,0,2).reshape(K,-1).astype(np.float64); return M@M.T
def pair_costs(y, x, w, lam, three=False):
    """cost[p,q,r] of skipping q+1..r-1 from nodes p<q, features y_p,y_q,x_i; and coefs"""
    n,T,D=y.shape
    G=gram(np.concatenate([y,x],1)); norm=np.trace(G[:T,:T])/T
    cost=np.full((T+1,T,T+1),np.inf); coef={}
    for q in range(T):
        for p in ([-1] if q==0 else range(q)):
            vec=np.zeros(2*T); cost[p,q,q+1]=0
            for i in range(q+1,T):
                f=[q,T+i] if p<0 else [p,q,T+i]
                A=G[np.ix_(f,f)]; bvec=G[f,i]
                co=np.linalg.solve(A+lam*norm*np.eye(len(f)),bvec)
                coef[p,q,i]=co
                vec[i]+=w[i]; vec[f]-=w[i]*co
                cost[p,q,i+1]=np.sqrt(max(vec@G@vec,0))
    return cost,coef,np.sqrt(norm)
def dp(cost,K,T,allowed=None,first=0):
    """K nodes from 0; returns list"""
    allowed=np.ones(T,bool) if allowed is None else allowed
    best=np.full((K+1,T+1,T),np.inf); back={}
    best[1,-1,0]=0
    for k in range(1,K):
        for q in range(T):
            for p in range(-1,q):
                v=best[k,p,q]
                if not np.isfinite(v): continue
                tot=v+cost[p,q,q+1:T]
                for r in range(q+1,T):
                    if allowed[r] and tot[r-q-1]<best[k+1,q,r]:
                        best[k+1,q,r]=tot[r-q-1]; back[k+1,q,r]=p
    end=np.inf
    for q in range(T):
        for p in range(-1,q):
            v=best[K,p,q]+cost[p,q,T]
            if v<end: end,state=v,(p,q)
    p,q=state; seq=[q]; k=K
    while k>1:
        seq.append(p); pp=back[k,p,q]; p,q=pp,p; k-=1
    return end,seq[::-1]
