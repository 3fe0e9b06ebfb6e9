import FlashAttention
import CPUAttention
struct G: RandomNumberGenerator { var s: UInt64 = 1; mutating func next() -> UInt64 { s = s &* 6364136223846793005 &+ 1442695040888963407; return s ^ (s >> 31) } }
func rnd(_ s: TensorShape, _ t: ScalarType) -> Tensor { var g = G(); return Tensor(shape: s, scalarType: t) { _,_,_,_ in Float.random(in: -2...2, using: &g) } }
let out = UnsafeMutableRawPointer.allocate(byteCount: 1<<20, alignment: 64)
for t in ScalarType.allCases { 
 let q=rnd(.init(batch:1,heads:32,length:1,dimension:128),t),k=rnd(.init(batch:1,heads:8,length:16384,dimension:128),t),v=rnd(.init(batch:1,heads:8,length:16384,dimension:128),t)
 let p = try AttentionProblem(queries:q,keys:k,values:v)
 let tiles=[8,16,24,32,48,64,96]
 var a=[[Double]](repeating:[],count:tiles.count),b=[Double]()
 for _ in 0..<31 { for (i,tk) in tiles.enumerated() { var pl = try! CPUPlan(p); pl.tileKeys = tk; 
 a[i].append(p.bytes/elapsedSeconds { _ = try! q.withView { q in try k.withView { k in try v.withView { v in try pl.run(queries:q,keys:k,values:v,output:MutableTensorView(base:out,scalarType:t,shape:p.outputShape,layout:.bhnd)) }}} }/1e9) }
 b.append(CPUProbe.readGigabytesPerSecond(byteCount: Int(p.bytes), repeats: 3)) }
 b.sort()
 print(t, b[15], zip(tiles,a).map { "\($0): \(($1.sorted()[15]/b[15]*100).rounded())" })
}
