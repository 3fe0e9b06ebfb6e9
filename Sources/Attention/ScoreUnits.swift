/// What a softmax in base 2, as all paths compute it, multiplies by: of a scale and a softcap.
package struct ScoreUnits: Sendable {
  /// The size of a unit of a product of Q and K in natural units; with a softcap, of its tanh.
  package let natural: Double
  /// The same as a power of two.
  package var base2: Double { natural * 1.4426950408889634 }
  /// What makes a product the argument of the softcap's tanh; nil without.
  package let cap: Double?
  /// Whether the queries are negated, so that the largest product belongs to the largest score: with a softcap, `cap`
  /// has the sign.
  package let isNegated: Bool

  /// The units of a scale and a softcap.
  package init(scale: Double, softcap: Double?) {
    natural = softcap ?? scale.magnitude
    cap = softcap.map { scale / $0 }
    isNegated = softcap == nil && scale < 0
  }
}
