import sys
src=open('/tmp/proto/v.py').read().split("for k in counts:")[0]
exec(src)
def show(name,kinds,order):
    pl=replace(plan,order=order) if True else plan
    s=M.fitted(p,b,"x",seen,kinds,pl); free=replace(s,bounds=tuple(1e9 for _ in s.bounds))
    print(name,order,kinds.count("b"),M._measured(p,free,unseen,whole).measured,flush=True)
show("alternate","b-"*25,1); show("alternate","b-"*25,2); show("all","b"*50,2)
