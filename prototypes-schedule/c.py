import sys,time; sys.path.insert(0,"/tmp/proto")
from runner import *; from greedy import *
task,sched=sys.argv[1],sys.argv[2]; order=int(sys.argv[3])
D=Data(task,sched,6,12); w,keep,gain=ddim_weights(D.L,D.N)
S=Search(D,gain,order=order)
t=time.time(); found=S.prune([50,33,25,20,12]); print("prune",time.time()-t,flush=True)
R=Runner(task,sched,6,[12,14,15,16,17,18])
def run(R,S,kinds):
    x=R.X0.copy().astype(np.float32); c={};d={}; cn,dn=[],[]; T=S.T; xs={}
    for i,t in enumerate(R.ts):
        k=kinds[i]; L=R.L[i]
        a,o=np.float32(np.sqrt(L)),np.float32(np.sqrt(1-L))
        if k==2:
            u_,c_=R.velocity(x,int(t)); c[i]=a*x-o*c_; d[i]=c[i]-(a*x-o*u_); g=c[i]+np.float32(S.s-1)*d[i]; cn.append(i); dn.append(i)
        else:
            if k==1:
                _,c_=R.velocity(x,int(t),"c"); c[i]=a*x-o*c_
            f,co=S.fit(i,cn,dn,k==1)
            g=0
            for j,w_ in zip(f,co):
                y=c[j] if j<T else d[j-T] if j<2*T else x
                g=g+np.float32(w_)*y
            if k==1: cn.append(i)
        x=np.float32(keep[i])*x+np.float32(gain[i])*g
    return x
for rows in (50,33,25,20,12):
    t=time.time(); k0=found[rows]; k,j=S.refine(k0,3); tr=time.time()-t
    print(rows,"J %.4f -> %.4f"%(S.J(k0),j),show(k),"refine %.0fs"%tr, np.round(R.score(run(R,S,k))[:3],4), "unrefined",np.round(R.score(run(R,S,k0))[:3],4) if rows>20 else "", flush=True)
