/// Which version of the library this is.
public enum Version {
  /// By the rules of semver.org.
  public static let current: StaticString = "1.0.0"
}
