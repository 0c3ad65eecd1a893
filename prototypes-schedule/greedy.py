"""State per step: 2 = both, 1 = cond only, 0 = nothing. Joint fitted forecast of guided g."""
import numpy as np
class Search:
    def __init__(self, D, gain, lam=1e-6, order=2, amp=None):
        self.T=T=D.T; n=len(D.g); self.s=D.s
        K=np.concatenate([D.c,D.d,D.x],1); M=K.transpose(1,0,2).reshape(3*T,-1).astype(np.float64)
        self.G=M@M.T
        self.norm=np.sqrt(np.trace((M[:T]+(D.s-1)*M[T:2*T])@(M[:T]+(D.s-1)*M[T:2*T]).T)/T)
        self.lam=lam*np.trace(self.G[:T,:T])/T
        self.gain,self.amp=gain,np.ones(T+1) if amp is None else amp
        self.order=order; self.cache={}
    def feats(self,i,cn,dn,ccomp):
        T=self.T
        f=[T+j for j in dn[-self.order:]]+[2*T+i]
        f=[j for j in (cn[-self.order:])]+f
        if ccomp: f=f+[i]
        return f
    def fit(self,i,cn,dn,ccomp):
        key=(i,tuple(cn[-self.order:]),tuple(dn[-self.order:]),ccomp)
        if key not in self.cache:
            T=self.T; f=self.feats(*key[:1],list(key[1]),list(key[2]),ccomp)
            A=self.G[np.ix_(f,f)]+self.lam*np.eye(len(f))
            b=self.G[f,i]+(self.s-1)*self.G[f,T+i]
            co=np.linalg.solve(A,b)
            self.cache[key]=(f,co)
        return self.cache[key]
    def vec(self,i,cn,dn,ccomp):
        f,co=self.fit(i,cn,dn,ccomp)
        v=np.zeros(3*self.T); v[i]+=1; v[self.T+i]+=self.s-1; v[f]-=co
        return v
    def J(self,kinds):
        T=self.T; cn,dn=[],[]; tot=0.0; vec=np.zeros(3*T); any_=False
        for i in range(T):
            k=kinds[i]
            if k and any_:  # a node: the state error so far in this stretch counts
                tot+=self.amp[i]*np.sqrt(max(vec@self.G@vec,0)); vec[:]=0; any_=False
            if k==2: cn.append(i); dn.append(i)
            else:
                if k==1: cn2=cn
                v=self.vec(i,cn,dn,k==1)
                vec=vec+self.gain[i]*v; any_=True
                if k==1: cn.append(i)
        if any_: tot+=self.amp[T]*np.sqrt(max(vec@self.G@vec,0))
        return tot/self.norm
    def prune(self,targets,log=None):
        kinds=[2]*self.T; out={}
        rows=sum(kinds)
        while rows>min(targets):
            best=(np.inf,)
            base=self.J(kinds)
            for i in range(1,self.T):
                if kinds[i]:
                    for k in range(kinds[i]):
                        trial=list(kinds); trial[i]=k
                        inc=(self.J(trial)-base)/(kinds[i]-k)
                        if inc<best[0]: best=(inc,i,k)
            _,i,k=best; kinds[i]=k; rows=sum(kinds)
            if rows in targets: out[rows]=list(kinds)
            elif rows+1 in targets and rows+1 not in out: out[rows+1]=list(kinds)
        return out
    def refine(self,kinds,rounds=6):
        kinds=list(kinds); best=self.J(kinds)
        for _ in range(rounds):
            better=False
            for i in range(1,self.T):
                if not kinds[i]: continue
                # move: take this row(s) elsewhere
                for j in range(1,self.T):
                    if j==i: continue
                    for di in ((kinds[i],) if kinds[i]==1 else (1,2)):
                        if kinds[j]+di>2: continue
                        t=list(kinds); t[i]-=di; t[j]+=di
                        v=self.J(t)
                        if v<best-1e-9: best,kinds,better=v,t,True; break
                    if not kinds[i]: break
            if not better: break
        return kinds,best
def show(k): return "".join(map(str,k))
