import sys; sys.path.insert(0,"/tmp/proto")
from search import *
import numpy as np
task,sched="t2v",sys.argv[1]
X,V,F=load(task,sched,6); _,ts,L,N=levels(task,sched)
a=np.sqrt(L)[None,:,None,None,None,None].astype(np.float32); o=np.sqrt(1-L)[None,:,None,None,None,None].astype(np.float32)
U=a*X-o*V[:,:,0]; C=a*X-o*V[:,:,1]; G=C+5*(C-U)
cal,te=slice(0,16),slice(16,24)
def pool(x,k):
    n,f,c,h,w=x.shape
    y=x.reshape(n,f,c,h//k,k,w//k,k).mean((4,6)); return np.repeat(np.repeat(y,k,3),k,4)
def tm(x): return np.broadcast_to(x.mean(1,keepdims=True),x.shape)
def bands(x): return [x,pool(x,2),pool(x,4),tm(x),tm(pool(x,2)),tm(pool(x,4)),pool(x,12)]
def fit(feats,y,perch=False):
    def solve(A,b,At):
        M=A@A.T; w=np.linalg.solve(M+1e-6*np.diag(np.diag(M)),A@b); return w@At
    if not perch:
        A=np.stack([f[cal].reshape(-1) for f in feats]).astype(float); At=np.stack([f[te].reshape(-1) for f in feats]).astype(float)
        r=solve(A,y[cal].reshape(-1).astype(float),At)-y[te].reshape(-1)
        return np.linalg.norm(r)
    tot=0
    for c in range(y.shape[2]):
        A=np.stack([f[cal][:,:,c].reshape(-1) for f in feats]).astype(float); At=np.stack([f[te][:,:,c].reshape(-1) for f in feats]).astype(float)
        r=solve(A,y[cal][:,:,c].reshape(-1).astype(float),At)-y[te][:,:,c].reshape(-1); tot+=r@r
    return tot**.5
for i,q,p in ((6,5,4),(12,11,9),(20,19,17),(30,29,27),(40,39,37),(46,45,43),(20,18,15),(40,38,35)):
    y=G[:,i]; base=np.linalg.norm(y[te])
    f=lambda *fs: fit(list(fs),y)/base
    dx=X[:,i]-X[:,q]
    print(i,q,p,"held %.4f"%(np.linalg.norm((G[:,q]-y)[te])/base), "g,g,x %.4f"%f(G[:,q],G[:,p],X[:,i]), "+xq %.4f"%f(G[:,q],G[:,p],X[:,i],X[:,q]),"+c,d %.4f"%f(C[:,q],C[:,p],U[:,q],U[:,p],X[:,i],X[:,q]),
     "+bands(x_i) %.4f"%f(G[:,q],G[:,p],*bands(X[:,i])), "+bands both %.4f"%f(*bands(G[:,q]),G[:,p],X[:,q],*bands(X[:,i])), "all bands all %.4f"%f(*bands(G[:,q]),*bands(G[:,p]),*bands(X[:,q]),*bands(X[:,i])), "per channel all %.4f"%(fit(bands(G[:,q])+[G[:,p]]+[X[:,q]]+bands(X[:,i]),y,True)/base),flush=True)
