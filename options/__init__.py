"""Option trees and recipes."""
