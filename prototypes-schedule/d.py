import sys,time; sys.path.insert(0,"/tmp/proto")
exec(open("/tmp/proto/c.py").read().split("S=Search")[0].replace("int(sys.argv[3])","2"))
src=open("/tmp/proto/c.py").read(); exec("def run"+src.split("def run")[1].split("for rows in")[0])
amp=np.interp(np.arange(51),[0,2,5,9,14,20,27,34,41,46,49,50],[1.5,1.5,1.2,1.2,.85,.75,.5,.4,.22,.17,.35,1.0])
R=Runner(task,sched,6,[12,14,15,16,17,18])
for lam in (1e-6,1e-5,1e-4):
  for name,a in (("flat",None),("amp",amp)):
    S=Search(D,gain,order=2,lam=lam,amp=a)
    found=S.prune([33,20])
    for rows in (33,20):
        k,j=S.refine(found[rows],4)
        print(lam,name,rows,"J %.4f"%j,show(k), np.round(R.score(run(R,S,k))[:3],4), flush=True)
