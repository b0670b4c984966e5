"""What training changed: answers of base and adapter side by side, an author's style, questions with known answers.

report.py writes what the others find as one HTML or JSON file.
"""
