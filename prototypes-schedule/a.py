import sys,time,os; sys.path.insert(0,"/tmp/proto")
from search import *
task,sched=sys.argv[1],sys.argv[2]
t=time.time()
D=Data(task,sched,6,12)
w,keep,gain=ddim_weights(D.L,D.N)
print("w", np.round(w,3)[:5], w[-5:], w.sum())
for lam in (1e-6,1e-5,1e-4):
    cost,coef,norm=pair_costs(D.g,D.x,w,lam)
    cost/=norm
    print("lam",lam,"time",time.time()-t)
    for K in (25,16,12,10,8,6):
        e,seq=dp(cost,K,50); print(K, round(e,5), seq)
