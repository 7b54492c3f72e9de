"""The ground floor: what every loss stands on, and which knows no loss."""
