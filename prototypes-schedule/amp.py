import sys,time; sys.path.insert(0,"/tmp/proto")
from runner import *
task,sched=sys.argv[1],sys.argv[2]
D=Data(task,sched,6,12); w,keep,gain=ddim_weights(D.L,D.N)
cost,coef,norm=pair_costs(D.g,D.x,gain,1e-6)
clips=[0,1,2]
R=Runner(task,sched,6,clips)
X,V,F=load(task,sched,6)
for n in (2,5,9,14,20,27,34,41,46,49):
    # error of forecasting steps n-1 from nodes (n-3,n-2), times gain -> state err at n, scaled to rel 1e-2
    co=coef[max(n-5,-1) if n>4 else (n-3 if n>=3 else -1),n-2,n-1]
    p=max(n-5,-1) if n>4 else (n-3 if n>=3 else -1)
    g=D.g[clips].reshape(3,50,*X.shape[2:]); xs=X[clips]
    f=[g[:,n-2],xs[:,n-1]] if p<0 else [g[:,p],g[:,n-2],xs[:,n-1]]
    e=sum(np.float32(a)*y for a,y in zip(co,f))-g[:,n-1]
    e=e/np.linalg.norm(e.reshape(3,-1),axis=1)[:,None,None,None,None]*np.linalg.norm(F[clips].reshape(3,-1),axis=1)[:,None,None,None,None]*0.02
    x=xs[:,n]+e
    keepd=np.sqrt((1-R.N)/(1-R.L)); 
    for i in range(n,50):
        u,c=R.velocity(x,int(R.ts[i])); v=u+np.float32(6)*(c-u)
        gg=np.float32(np.sqrt(R.L[i]))*x-np.float32(np.sqrt(1-R.L[i]))*v
        x=np.float32(keepd[i])*x+np.float32(gain[i])*gg
    out=np.linalg.norm((x-F[clips]).reshape(3,-1),axis=1)/np.linalg.norm(F[clips].reshape(3,-1),axis=1)
    print(n, "sqrt level %.3f"%np.sqrt(R.L[n]), "gain %.4f"%gain[n-1], "amp", np.round(out/0.02,2), flush=True)
