// Whoami answers with who it is.
package main

import (
	"embed"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"text/template"

	"github.com/google/uuid"
)

var version = "unset"

//go:embed templates
var files embed.FS

func answer(w io.Writer, space string) error {
	page, err := template.ParseFS(files, "templates/answer.txt")
	if err != nil {
		return err
	}
	return page.Execute(w, map[string]any{
		"Version": version,
		"User":    os.Getuid(),
		"ID":      uuid.NewSHA1(uuid.NameSpaceDNS, []byte(space)),
	})
}

func main() {
	check := flag.Bool("check", false, "ask a running server")
	flag.Parse()
	if *check {
		response, err := http.Get("http://127.0.0.1:8080/")
		if err != nil {
			log.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(string(text))
		return
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		os.Exit(0)
	}()
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		if err := answer(w, "example.org"); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
