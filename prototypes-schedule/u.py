"""Unified: kinds per step, per-step on-policy fitted coefs over last m c's, last m d's, x. DDIM and DPM (first-order move)."""
import sys,time; sys.path.insert(0,"/tmp/proto")
from runner import *
task,sched,g=sys.argv[1],sys.argv[2],6.0
T=50; NC=int(sys.argv[4]) if len(sys.argv)>4 else 12
X,V,F=load(task,sched,g); Xs=np.concatenate([X,F[:,None]],1)
s_,ts,L,N=levels(task,sched)
from reelquant.runtime.models.cogvideox import schedulers as SC
if sched=="ddim":
    keep=np.sqrt((1-N)/(1-L)); gain=np.sqrt(N)-np.sqrt(L)*keep; spread=np.zeros(T)
else:
    with np.errstate(all="ignore"):
        lam=lambda l: np.log(np.sqrt(l/(1-l)))
        h=lam(N)-lam(L); keep=np.sqrt((1-N)/(1-L))*np.exp(-h); gain=-np.expm1(-2*h)*np.sqrt(N); spread=np.sqrt(1-N)*np.sqrt(1-np.exp(-2*h))
    keep=np.nan_to_num(keep); spread=np.nan_to_num(spread)
a,o=np.sqrt(L).astype(np.float32),np.sqrt(1-L).astype(np.float32)
keep,gain,spread=(z.astype(np.float32) for z in (keep,gain,spread))
def noises(R):
    """the same draws as the pipeline's"""
    out=[]
    if sched=="ddim": return np.zeros((T,)+R.X0.shape,np.float32)
    for c,r in R.conds:
        rng=np.random.default_rng(r.seed); shape=R.X0.shape[1:]
        rng.standard_normal(shape,dtype=np.float32)
        if r.image is not None: rng.standard_normal((1,*shape[1:]),dtype=np.float32)
        out.append(np.stack([rng.standard_normal(shape,dtype=np.float32) for _ in range(T)]))
    return np.stack(out,1)
def features(cs,ds,x,m):
    return cs[-m:][::-1]+ds[-m:][::-1]+[x]
def fit(R,clips,kinds,m,lam=1e-5):
    n=noises(R); x=R.X0.copy(); cs,ds=[],[]; co=[]
    for i in range(T):
        if kinds[i]==2:
            u_,c_=R.velocity(x,int(ts[i])); c=a[i]*x-o[i]*c_; cs.append(c); ds.append(c-(a[i]*x-o[i]*u_))
        elif kinds[i]==1:
            _,c_=R.velocity(x,int(ts[i]),"c"); cs.append(a[i]*x-o[i]*c_)
        f=features(cs,ds,x,m)
        y=((Xs[clips,i+1]-keep[i]*x-spread[i]*n[i])/gain[i]).reshape(-1).astype(np.float64)
        A=np.stack([z.reshape(-1) for z in f]).astype(np.float64)
        prior=np.zeros(len(f)); prior[0]=1; prior[min(m,len(cs))]=g-1
        M=A@A.T; sc=np.diag(M)
        # ridge relative to each feature's own energy
        w=prior+np.linalg.solve(M+lam*np.diag(sc)+1e-9*sc.max()*np.eye(len(f)),A@(y-prior@A))
        co.append(w)
        G=sum(np.float32(b)*z for b,z in zip(w,f))
        x=keep[i]*x+gain[i]*G+spread[i]*n[i]
    return co,np.mean([np.linalg.norm(p-q)/np.linalg.norm(q) for p,q in zip(x,F[clips])])
def roll(R,kinds,co,m):
    n=noises(R); x=R.X0.copy(); cs,ds=[],[]
    for i in range(T):
        if kinds[i]==2:
            u_,c_=R.velocity(x,int(ts[i])); c=a[i]*x-o[i]*c_; cs.append(c); ds.append(c-(a[i]*x-o[i]*u_))
        elif kinds[i]==1:
            _,c_=R.velocity(x,int(ts[i]),"c"); cs.append(a[i]*x-o[i]*c_)
        G=sum(np.float32(b)*z for b,z in zip(co[i],features(cs,ds,x,m)))
        x=keep[i]*x+gain[i]*G+spread[i]*n[i]
    return x
if __name__=="__main__":
    cal=list(range(NC)); test=[c for c in range(len(X)) if c>=NC][:6] if len(X)>NC+6 else list(range(len(X)-6,len(X)))
    D=Data(task,sched,6,NC); D.T=T
    n=NC; Y=np.concatenate([D.g,D.x],1).astype(np.float64)
    Gc=np.einsum("ckd,cld->ckl",Y,Y); Gp=Gc.sum(0); fn=np.linalg.norm(F[:NC].reshape(NC,-1),axis=1)
    c=np.full((NC,T+1,T,T+1),np.inf); norm=np.trace(Gp[:T,:T])/T
    for q in range(T):
        for p in ([-1] if q==0 else range(q)):
            vec=np.zeros(2*T); c[:,p,q,q+1]=0
            for i in range(q+1,T):
                f=[q,T+i] if p<0 else [p,q,T+i]
                w=np.linalg.solve(Gp[np.ix_(f,f)]+1e-6*norm*np.eye(len(f)),Gp[f,i])
                vec*=keep[i]; vec[i]+=gain[i]; vec[f]-=gain[i]*w
                c[:,p,q,i+1]=np.sqrt(np.maximum(np.einsum("k,ckl,l->c",vec,Gc,vec),0))/fn
    agg=c.max(0)
    RC=Runner(task,sched,6,cal,threads=2); RT=Runner(task,sched,6,test,threads=2)
    for K in [int(k) for k in sys.argv[3].split(",")]:
        e,seq=dp(agg,K,T); kinds=[2 if i in seq else 0 for i in range(T)]
        for m in (2,3):
            co,rl=fit(RC,cal,kinds,m); print(task,sched,K,"m",m,seq,"train %.4f"%rl,np.round(RT.score(roll(RT,kinds,co,m))[:3],4),flush=True)
