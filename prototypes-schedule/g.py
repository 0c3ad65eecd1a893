import sys,time; sys.path.insert(0,"/tmp/proto")
from search import *
task,sched="t2v","ddim"
D=Data(task,sched,6,24); w,keep,gain=ddim_weights(D.L,D.N); T=50
X,V,F=load(task,sched,6); Xs=np.concatenate([X,F[:,None]],1).reshape(24,51,-1)
fn=np.linalg.norm(Xs[:,50],axis=1)
def jump(q,r):
    return np.prod(keep[q:r]), sum(gain[i]*np.prod(keep[i+1:r]) for i in range(q,r))
cal=list(range(12))
def per_clip(hist,r):
    q=hist[-1]; k,G=jump(q,r)
    f=[D.g[:,h] for h in hist[-3:][::-1]]+([Xs[:,q]] if q else [])
    A=np.stack([y[cal].reshape(-1) for y in f]); y=((Xs[:,r]-k*Xs[:,q])/G)
    M=A@A.T; a=np.linalg.solve(M+1e-6*np.trace(M)/len(f)*np.eye(len(f)),A@y[cal].reshape(-1))
    e=G*(y-sum(b*z for b,z in zip(a,f)))
    return np.linalg.norm(e,axis=1)/fn
for hist,r in (([0,1],2),([0,1],4),([0,1],6),([0,1,2,3],4),([0,1,4],6),([0,1,4,6],10),([2,3,4],6),([4,6,10],14),([14,20,27],46),([20,26,33],40)):
    e=per_clip(hist,r); print(hist,r,"cal mean %.4f max %.4f"%(e[:12].mean(),e[:12].max()),"test",np.round(e[[12,14,15,16,17,18]],4))
