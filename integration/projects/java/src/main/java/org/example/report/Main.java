package org.example.report;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.TreeMap;

/** Prints a report as JSON. */
public final class Main {
    private Main() {}

    /** Where the program begins. */
    public static void main(String[] arguments) throws IOException {
        Map<String, Object> report = new TreeMap<>();
        try (InputStream name = Main.class.getResourceAsStream("/name.txt")) {
            report.put("name", new String(name.readAllBytes(), StandardCharsets.UTF_8).trim());
        }
        report.put("java", Runtime.version().feature());
        System.out.println(new ObjectMapper().writeValueAsString(report));
    }
}
