// Renders a helm chart as helm does: by text/template, which is helm's own engine, with the few of helm's functions and objects that the
// chart uses. What is not here is an error, as is a value that is missing.
//
// Arguments: the chart's folder. Standard input: a Request. Standard output: the rendered text of each template, as a JSON object.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

// Request is what `helm template` takes on its command line.
type Request struct {
	// Over those of values.yaml.
	Values map[string]interface{}
	// Of the release.
	Namespace string
}

// Chart is what helm shows to templates of Chart.yaml.
type Chart struct{ Name, Version, AppVersion string }

// Files is `.Files`.
type Files struct{ folder string }

// Get gives the text of a file of the chart.
func (files Files) Get(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(files.folder, name))
	return string(text), err
}

func main() {
	log.SetFlags(0)
	folder := os.Args[1]
	var request Request
	check(json.NewDecoder(os.Stdin).Decode(&request))
	var chart Chart
	read(filepath.Join(folder, "Chart.yaml"), &chart)
	values := map[string]interface{}{}
	read(filepath.Join(folder, "values.yaml"), &values)
	merge(values, request.Values)

	paths, err := filepath.Glob(filepath.Join(folder, "templates", "*"))
	check(err)
	templates := template.New("").Option("missingkey=error")
	templates.Funcs(functions(templates))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		check(err)
		template.Must(templates.New(filepath.Base(path)).Parse(string(text)))
	}
	context := map[string]interface{}{
		"Values":  values,
		"Chart":   chart,
		"Release": map[string]string{"Name": "podwire", "Namespace": request.Namespace},
		"Files":   Files{folder},
	}
	rendered := map[string]string{}
	for _, path := range paths {
		// Files with another ending only define.
		if name := filepath.Base(path); strings.HasSuffix(name, ".yaml") {
			var text strings.Builder
			check(templates.ExecuteTemplate(&text, name, context))
			rendered[name] = text.String()
		}
	}
	check(json.NewEncoder(os.Stdout).Encode(rendered))
}

// Those of helm and of sprig, its library, by their names there.
func functions(templates *template.Template) template.FuncMap {
	return template.FuncMap{
		"include": func(name string, context interface{}) (string, error) {
			var text strings.Builder
			err := templates.ExecuteTemplate(&text, name, context)
			return text.String(), err
		},
		"toYaml": func(value interface{}) (string, error) {
			text, err := yaml.Marshal(value)
			return strings.TrimSuffix(string(text), "\n"), err
		},
		"nindent": func(spaces int, text string) string {
			indent := "\n" + strings.Repeat(" ", spaces)
			return indent + strings.ReplaceAll(text, "\n", indent)
		},
		"default": func(otherwise string, given interface{}) interface{} {
			if given == nil || given == "" {
				return otherwise
			}
			return given
		},
		"fail":  func(reason string) (string, error) { return "", errors.New(reason) },
		"quote": func(value string) string { return fmt.Sprintf("%q", value) },
		"sha256sum": func(text string) string {
			return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
		},
	}
}

// Mappings become one, as with several files of values; whatever else is given takes the other's place.
func merge(values, over map[string]interface{}) {
	for key, value := range over {
		below, isMapping := value.(map[string]interface{})
		if beneath, wasMapping := values[key].(map[string]interface{}); isMapping && wasMapping {
			merge(beneath, below)
		} else {
			values[key] = value
		}
	}
}

func read(path string, into interface{}) {
	text, err := os.ReadFile(path)
	check(err)
	if err := yaml.Unmarshal(text, into); err != nil {
		log.Fatalf("%s: %v", path, err)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
