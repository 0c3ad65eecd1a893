import sys,time; sys.path.insert(0,"/tmp/proto")
from runner import *
task,sched=sys.argv[1],sys.argv[2]
D=Data(task,sched,6,12)
w,keep,gain=ddim_weights(D.L,D.N)
R=Runner(task,sched,6,[12,14,15,16,17,18])
lev={16:[0,1,2,3,4,6,8,11,15,19,23,28,34,40,45,49],25:[0,1,2,3,4,5,6,8,10,13,15,17,19,21,23,26,29,33,36,40,44,46,47,48,49]}
t=time.time()
print("lever16 linear", R.score(R.run_ddim(lev[16],linear_phi(R.L)))[:3], time.time()-t, flush=True)
for lam in (1e-6,):
    cost,coef,norm=pair_costs(D.g,D.x,gain,lam); cost/=norm
    print("lever16 fitted",lam, R.score(R.run_ddim(lev[16],fitted(coef)))[:3], flush=True)
    for K in (25,16,12,10):
        e,seq=dp(cost,K,50)
        print(K,round(e,5),seq, R.score(R.run_ddim(seq,fitted(coef)))[:3], flush=True)
