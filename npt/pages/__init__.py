"""What the HTML pages of this package share: style, script, figures as SVG, the extra needed."""
