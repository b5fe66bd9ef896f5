package caddyrelay

import (
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// checkSecret says so if a secret is not one placeholder: what is written out in a configuration can be
// read at the admin endpoint, in autosave.json and in every backup of either. what names it for
// errors, which never show a value.
func checkSecret(what, configured string) error {
	inner, opened := strings.CutPrefix(configured, "{")
	inner, closed := strings.CutSuffix(inner, "}")
	if !opened || !closed || strings.ContainsAny(inner, "{}") {
		return fmt.Errorf("%s is written out in the configuration: write a placeholder instead, "+
			"such as {env.RELAY_TOKEN} or {file./run/secrets/relay_token}", what)
	}
	return nil
}

// secret returns what a configured secret stands for.
func secret(what, configured string) (string, error) {
	if err := checkSecret(what, configured); err != nil {
		return "", err
	}
	inner := configured[1 : len(configured)-1]
	value, err := caddy.NewReplacer().ReplaceOrErr(configured, true, true)
	if err == nil && strings.TrimSpace(value) != "" {
		return value, nil
	}
	if name, ok := strings.CutPrefix(inner, "env."); ok {
		return "", fmt.Errorf("%s: the environment variable %s is not set: set it before Caddy starts", what, name)
	}
	if name, ok := strings.CutPrefix(inner, "file."); ok {
		return "", fmt.Errorf("%s: the file %s is missing, empty or not readable by Caddy", what, name)
	}
	return "", fmt.Errorf("%s: the placeholder %s stands for nothing", what, configured)
}

// secrets returns what several secrets stand for.
func secrets(what string, configured []string) ([]string, error) {
	var values []string
	for _, c := range configured {
		v, err := secret(what, c)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}
