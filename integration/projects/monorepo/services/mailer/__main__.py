from shared import text

print(text.of("mailer"))
